// The stage: photo, mask and result, zoomed and panned; strokes by mouse, pen, finger and keyboard.

import { $, clamp, still } from "./dom.js";

const MOST = 8; // largest zoom
const MARGIN = 12; // pixels round the photo
const REVEAL = 900; // milliseconds

export class Stage {
  constructor(mask) {
    this.mask = mask;
    this.viewport = $("viewport");
    this.plane = $("plane");
    this.ring = $("ring");
    this.erase = false;
    this.locked = false;
    this.view = { zoom: 1, x: 0, y: 0 };
    this.base = { width: 0, height: 0 };
    this.natural = [1, 1];
    this.pointers = new Map();
    this.spot = null; // the brush of the keyboard, in pixels of the photo
    new ResizeObserver(() => this.fit()).observe(this.viewport);
    this.#listen();
  }

  get mode() {
    return this.viewport.dataset.mode;
  }

  /** "empty", "mask" or "compare". */
  set mode(mode) {
    this.viewport.dataset.mode = mode;
    for (const id of ["before", "after", "divider", "handle"]) $(id).hidden = mode !== "compare";
    $("mask").hidden = mode !== "mask";
    this.ring.hidden = true;
    this.spot = null;
  }

  /** Diameter of the brush in pixels of the photo. */
  get diameter() {
    return (Number($("size").value) / 512) * Math.max(...this.natural);
  }

  /** Lays the plane out for a photo of a size. */
  size(width, height) {
    this.natural = [width, height];
    this.fit();
  }

  /** The whole photo, as large as there is room. */
  fit() {
    const { clientWidth, clientHeight } = this.viewport;
    const [width, height] = this.natural;
    const scale = Math.min((clientWidth - 2 * MARGIN) / width, (clientHeight - 2 * MARGIN) / height);
    this.base = { width: width * scale, height: height * scale };
    this.plane.style.width = `${this.base.width}px`;
    this.plane.style.height = `${this.base.height}px`;
    this.view = { zoom: 1, x: 0, y: 0 };
    this.#place();
  }

  /** Zooms by a factor about a point of the viewport, its middle where none is given. */
  zoomBy(factor, x = this.viewport.clientWidth / 2, y = this.viewport.clientHeight / 2) {
    const zoom = clamp(this.view.zoom * factor, 1, MOST);
    const real = zoom / this.view.zoom;
    this.view = { zoom, x: x - (x - this.view.x) * real, y: y - (y - this.view.y) * real };
    this.#place();
  }

  /** Where the line between before and after stands, in percent from the left. */
  split(percent) {
    $("divider").value = percent;
    this.plane.style.setProperty("--split", `${percent}%`);
  }

  /** Uncovers the result once, from right to left. */
  reveal() {
    cancelAnimationFrame(this.frame);
    if (still()) return this.split(0);
    const begin = performance.now();
    const next = (now) => {
      const part = clamp((now - begin) / REVEAL, 0, 1);
      this.split(100 * (1 - part) ** 3);
      if (part < 1) this.frame = requestAnimationFrame(next);
    };
    this.split(100);
    this.frame = requestAnimationFrame(next);
  }

  /** Scrolls the photo into view where it is not, as on a phone. */
  reach() {
    this.viewport.scrollIntoView({ block: "nearest", behavior: still() ? "auto" : "smooth" });
  }

  /** Shows how large the brush is. */
  preview() {
    if (this.mode !== "mask") return;
    const box = this.viewport.getBoundingClientRect();
    this.#ringAt(box.left + box.width / 2, box.top + box.height / 2);
    clearTimeout(this.fading);
    this.fading = setTimeout(() => (this.ring.hidden = true), 700);
  }

  #place() {
    const { clientWidth, clientHeight } = this.viewport;
    const { zoom } = this.view;
    const inside = (at, room, length) =>
      length <= room ? (room - length) / 2 : clamp(at, room - length - MARGIN, MARGIN);
    this.view.x = inside(this.view.x, clientWidth, this.base.width * zoom);
    this.view.y = inside(this.view.y, clientHeight, this.base.height * zoom);
    this.plane.style.transform = `translate(${this.view.x}px, ${this.view.y}px) scale(${zoom})`;
    this.plane.style.setProperty("--unzoom", 1 / zoom);
    $("zoom-out").disabled = $("zoom-fit").disabled = zoom === 1;
    $("zoom-in").disabled = zoom === MOST;
  }

  #toPhoto(clientX, clientY) {
    const box = this.plane.getBoundingClientRect();
    const [width, height] = this.natural;
    return [((clientX - box.left) / box.width) * width, ((clientY - box.top) / box.height) * height];
  }

  #ringAt(clientX, clientY) {
    const box = this.viewport.getBoundingClientRect();
    const shown = (this.diameter / this.natural[0]) * this.base.width * this.view.zoom;
    this.ring.style.width = this.ring.style.height = `${shown}px`;
    this.ring.style.transform = `translate(${clientX - box.left - shown / 2}px, ${clientY - box.top - shown / 2}px)`;
    this.ring.hidden = this.locked;
    clearTimeout(this.fading);
  }

  #brush() {
    return { diameter: this.diameter, erase: this.erase };
  }

  #listen() {
    const { viewport, mask } = this;
    viewport.addEventListener("pointerdown", (event) => this.#down(event));
    viewport.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      viewport.addEventListener(name, (event) => this.#up(event, name === "pointercancel"));
    }
    viewport.addEventListener("pointerleave", () => (this.ring.hidden = true));
    viewport.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    mask.canvas.addEventListener("keydown", (event) => this.#key(event));
    mask.canvas.addEventListener("blur", () => (this.ring.hidden = true));
    $("divider").addEventListener("input", (event) => {
      cancelAnimationFrame(this.frame);
      this.split(event.target.value);
    });
    $("zoom-in").addEventListener("click", () => this.zoomBy(1.5));
    $("zoom-out").addEventListener("click", () => this.zoomBy(1 / 1.5));
    $("zoom-fit").addEventListener("click", () => this.fit());
  }

  #down(event) {
    if (this.mode === "empty" || event.target.closest("button")) return;
    if (this.mode === "compare" && event.pointerType !== "touch") return;
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) {
      this.mask.cancel();
      this.ring.hidden = true;
    }
    if (this.mode !== "mask" || event.button !== 0 || this.locked || this.pointers.size > 1) return;
    if (event.target !== this.mask.canvas && event.target !== this.viewport) return;
    event.preventDefault();
    this.mask.canvas.focus({ preventScroll: true });
    this.viewport.setPointerCapture(event.pointerId);
    this.mask.begin(...this.#toPhoto(event.clientX, event.clientY), this.#brush());
    this.#ringAt(event.clientX, event.clientY);
  }

  #move(event) {
    if (this.pointers.size === 2 && this.pointers.has(event.pointerId)) return this.#pinch(event);
    if (this.mode !== "mask") return;
    if (event.target.closest("button")) this.ring.hidden = true;
    else if (event.pointerType !== "touch" || this.mask.stroke) this.#ringAt(event.clientX, event.clientY);
    if (!this.mask.stroke || !this.pointers.has(event.pointerId)) return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const point of all.length ? all : [event]) {
      this.mask.move(...this.#toPhoto(point.clientX, point.clientY));
    }
  }

  #up(event, cancelled) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (cancelled) this.mask.cancel();
    else this.mask.end();
    if (event.pointerType === "touch") this.ring.hidden = true;
  }

  #pinch(event) {
    const [a, b] = this.pointers.values();
    const before = [a, b];
    this.pointers.set(event.pointerId, event);
    const after = [...this.pointers.values()];
    const box = this.viewport.getBoundingClientRect();
    const middle = (pair) => [(pair[0].clientX + pair[1].clientX) / 2 - box.left, (pair[0].clientY + pair[1].clientY) / 2 - box.top];
    const apart = (pair) => Math.hypot(pair[0].clientX - pair[1].clientX, pair[0].clientY - pair[1].clientY);
    const [fromX, fromY] = middle(before);
    const [toX, toY] = middle(after);
    this.view.x += toX - fromX;
    this.view.y += toY - fromY;
    this.zoomBy(apart(after) / Math.max(1, apart(before)), toX, toY);
  }

  #wheel(event) {
    if (this.mode === "empty") return;
    const box = this.viewport.getBoundingClientRect();
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoomBy(Math.exp(-clamp(event.deltaY, -60, 60) / 150), event.clientX - box.left, event.clientY - box.top);
    } else if (this.view.zoom > 1) {
      event.preventDefault();
      this.view.x -= event.deltaX;
      this.view.y -= event.deltaY;
      this.#place();
    }
  }

  /** The brush by keyboard: arrows move, space paints, shift paints on the way. */
  #key(event) {
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || this.locked) return;
    if (!direction && event.key !== " ") return;
    event.preventDefault();
    const [width, height] = this.natural;
    const from = this.spot ?? [width / 2, height / 2];
    const [dx, dy] = direction ?? [0, 0];
    const stride = Math.max(2, this.diameter / 4);
    const to = [clamp(from[0] + dx * stride, 0, width), clamp(from[1] + dy * stride, 0, height)];
    if (event.key === " " || event.shiftKey) {
      this.mask.begin(...from, this.#brush());
      this.mask.move(...to);
      this.mask.end();
    }
    this.spot = to;
    const box = this.plane.getBoundingClientRect();
    this.#ringAt(box.left + (to[0] / width) * box.width, box.top + (to[1] / height) * box.height);
  }
}
