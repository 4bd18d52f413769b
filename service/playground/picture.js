// Photos: opened, turned upright, and brought to a size that the server takes.

import { newCanvas } from "./dom.js";

export class PictureError extends Error {}

/**
 * The size at which a picture is worked on: its sides' proportion is kept, every side lies within
 * the bounds, and nothing is enlarged unless a side would be too short or `longest` asks for it.
 */
export function fit(width, height, bounds, longest = null) {
  const [low, high] = bounds;
  const long = Math.max(width, height);
  let scale = longest ? longest / long : Math.min(1, high / long);
  scale = Math.max(scale, low / Math.min(width, height));
  if (Math.round(long * scale) > high) {
    throw new PictureError(`This photo is too narrow: ${width} × ${height}. One side may be ${Math.floor(high / low)} times the other at most.`);
  }
  return [Math.round(width * scale), Math.round(height * scale)];
}

/** Opens a photo: upright by its EXIF orientation, over white where it is transparent. */
export async function openPicture(blob, bounds) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    throw new PictureError("This file is not a picture that the browser can read.");
  }
  const natural = [bitmap.width, bitmap.height];
  const [width, height] = fit(...natural, bounds);
  const canvas = scaled(bitmap, width, height, "white");
  bitmap.close();
  return { canvas, natural };
}

/** A copy of a picture at another size. */
export function scaled(source, width, height, under = null) {
  const canvas = newCanvas(width, height);
  const pen = canvas.getContext("2d");
  if (under) {
    pen.fillStyle = under;
    pen.fillRect(0, 0, width, height);
  }
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, 0, 0, width, height);
  return canvas;
}

/** What a person reads about the size. */
export function describe({ canvas, natural }) {
  const now = `${canvas.width} × ${canvas.height}`;
  const before = `${natural[0]} × ${natural[1]}`;
  if (now === before) return now;
  const why = natural[0] > canvas.width ? "the largest that is taken" : "the smallest that is taken";
  return `${before}, worked on at ${now}: ${why}`;
}
