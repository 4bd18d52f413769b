// Small helpers for the page's elements and for pictures in memory.

export const $ = (id) => document.getElementById(id);

/** A file of this server, however deep a proxy has put it. */
export const here = (path) => new URL(path, document.baseURI);

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

export function toBlob(canvas) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The browser could not encode the picture."))), "image/png");
  });
}

export function toDataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

export function seconds(value) {
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}
