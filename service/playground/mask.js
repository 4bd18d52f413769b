// The mask: painted strokes with undo. What is painted shall change.

import { newCanvas } from "./dom.js";

const KEPT = 40; // steps of undo
const TINT = "#ff5a36";

export class Mask {
  /** Draws on `canvas`; `onChange` is called whenever a stroke has ended. */
  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d", { willReadFrequently: true });
    this.onChange = () => {};
    this.reset(canvas.width, canvas.height);
    this.onChange = onChange;
  }

  /** Forgets everything, for a photo of another size. */
  reset(width, height) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.steps = [new Uint8Array(width * height)];
    this.at = 0;
    this.stroke = null;
    this.onChange();
  }

  get empty() {
    return !this.steps[this.at].some((alpha) => alpha >= 128);
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.steps.length - 1;
  }

  /** Begins a stroke at a point (pixels of the photo). */
  begin(x, y, { diameter, erase }) {
    const { pen } = this;
    pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
    pen.strokeStyle = pen.fillStyle = TINT;
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = diameter;
    pen.beginPath();
    pen.arc(x, y, diameter / 2, 0, 2 * Math.PI);
    pen.fill();
    this.stroke = { x, y, midX: x, midY: y };
  }

  /** Goes on to a point; the line bends through the middles between points, so it has no corners. */
  move(x, y) {
    const { pen, stroke } = this;
    if (!stroke) return;
    const midX = (stroke.x + x) / 2;
    const midY = (stroke.y + y) / 2;
    pen.beginPath();
    pen.moveTo(stroke.midX, stroke.midY);
    pen.quadraticCurveTo(stroke.x, stroke.y, midX, midY);
    pen.stroke();
    this.stroke = { x, y, midX, midY };
  }

  /** Ends the stroke; it can be undone from now on. */
  end() {
    const { pen, stroke } = this;
    if (!stroke) return;
    pen.beginPath();
    pen.moveTo(stroke.midX, stroke.midY);
    pen.lineTo(stroke.x, stroke.y);
    pen.stroke();
    this.stroke = null;
    this.#remember(this.#alpha());
  }

  /** Takes back a stroke that has not ended. */
  cancel() {
    if (!this.stroke) return;
    this.stroke = null;
    this.#show();
  }

  undo() {
    if (!this.canUndo) return;
    this.at -= 1;
    this.#show();
    this.onChange();
  }

  redo() {
    if (!this.canRedo) return;
    this.at += 1;
    this.#show();
    this.onChange();
  }

  clear() {
    if (this.steps[this.at].some((alpha) => alpha > 0)) this.#put(new Uint8Array(this.steps[this.at].length));
  }

  invert() {
    this.#put(this.steps[this.at].map((alpha) => 255 - alpha));
  }

  /** Takes over a picture whose white part shall change. */
  load(picture) {
    const { width, height } = this.canvas;
    const copy = newCanvas(width, height);
    const pen = copy.getContext("2d");
    pen.drawImage(picture, 0, 0, width, height);
    const { data } = pen.getImageData(0, 0, width, height);
    this.#put(Uint8Array.from({ length: width * height }, (_, i) => data[4 * i]));
  }

  /** The mask as the server takes it, at its own size: white shall change, black is kept. */
  picture() {
    const { width, height } = this.canvas;
    const copy = newCanvas(width, height);
    const pen = copy.getContext("2d");
    const image = pen.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const alpha = this.steps[this.at];
    for (let i = 0; i < alpha.length; i += 1) pixels[i] = alpha[i] >= 128 ? 0xffffffff : 0xff000000;
    pen.putImageData(image, 0, 0);
    return copy;
  }

  #put(alpha) {
    this.#remember(alpha);
    this.#show();
  }

  #remember(alpha) {
    this.steps.length = this.at + 1;
    this.steps.push(alpha);
    if (this.steps.length > KEPT) this.steps.shift();
    this.at = this.steps.length - 1;
    this.onChange();
  }

  #alpha() {
    const { width, height } = this.canvas;
    const { data } = this.pen.getImageData(0, 0, width, height);
    const alpha = new Uint8Array(width * height);
    for (let i = 0; i < alpha.length; i += 1) alpha[i] = data[4 * i + 3];
    return alpha;
  }

  #show() {
    const { width, height } = this.canvas;
    const image = this.pen.createImageData(width, height);
    const alpha = this.steps[this.at];
    for (let i = 0; i < alpha.length; i += 1) {
      image.data[4 * i] = 255;
      image.data[4 * i + 1] = 90;
      image.data[4 * i + 2] = 54;
      image.data[4 * i + 3] = alpha[i];
    }
    this.pen.putImageData(image, 0, 0);
  }
}
