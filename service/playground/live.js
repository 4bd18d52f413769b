// Live mode: one stream to the server; every change is sent, and the newest wins.

import { here, toBlob } from "./dom.js";

const PATH = "api/v6/realtime/stream";

export class Live {
  /**
   * @param {() => {values: object, pictures: object} | null} wish What is wanted now: the fields of a
   *   request, and its pictures as canvases that are other objects when they are other pictures.
   * @param {(blob: Blob, message: object) => Promise<void>} onPicture Told of every preview and result.
   * @param {(message: string | null) => void} onSay Told of errors; null when the stream has ended.
   */
  constructor(wish, onPicture, onSay) {
    Object.assign(this, { wish, onPicture, onSay, socket: null });
  }

  get on() {
    return !!this.socket;
  }

  start() {
    const url = here(PATH);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.binaryType = "blob";
    Object.assign(this, { socket, sent: { values: {}, pictures: {} }, count: 0, busy: false, again: false, head: null, shown: Promise.resolve() });
    socket.addEventListener("open", () => this.change());
    socket.addEventListener("message", ({ data }) => this.#hear(data));
    socket.addEventListener("close", ({ reason }) => {
      if (this.socket !== socket) return;
      this.socket = null;
      this.onSay(reason ? `Live has ended: ${reason}` : "Live has ended.", true);
    });
  }

  stop() {
    const { socket } = this;
    this.socket = null;
    socket?.close();
  }

  /** Something may have changed: sends what has, one message at a time. */
  async change() {
    const { socket } = this;
    if (socket?.readyState !== WebSocket.OPEN) return;
    this.again = true;
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.again && this.socket === socket) {
        this.again = false;
        await this.#send(socket);
      }
    } finally {
      this.busy = false;
    }
  }

  async #send(socket) {
    const wish = this.wish();
    if (!wish) return;
    const values = changed(this.sent.values, wish.values);
    const pictures = Object.entries(wish.pictures).filter(([name, canvas]) => this.sent.pictures[name] !== canvas);
    if (!Object.keys(values).length && !pictures.length) return;
    const blobs = await Promise.all(pictures.map(([, canvas]) => toBlob(canvas)));
    if (this.socket !== socket) return;
    socket.send(JSON.stringify({ ...values, binary: pictures.map(([name]) => name) }));
    for (const blob of blobs) socket.send(blob);
    this.sent = wish;
    this.count += 1;
  }

  #hear(data) {
    if (data instanceof Blob) {
      const head = this.head;
      this.head = null;
      this.shown = this.shown.then(() => head?.edit === this.count && this.onPicture(data, head)); // in order
      return;
    }
    const message = JSON.parse(data);
    if (message.binary) this.head = message;
    if (message.type === "error" && message.edit === this.count) this.onSay(message.message, false);
  }
}

/** What `now` says otherwise than `before`; null for what it says no more. */
function changed(before, now) {
  const names = new Set([...Object.keys(before), ...Object.keys(now)]);
  return Object.fromEntries([...names].filter((name) => before[name] !== now[name]).map((name) => [name, now[name] ?? null]));
}
