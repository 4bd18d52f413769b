// The page: what a person does, what is asked of the server, and what is shown of it.

import { ServerError, download, paint } from "./client.js";
import { $, clamp, here, toBlob, toDataUri } from "./dom.js";
import * as form from "./form.js";
import { Live } from "./live.js";
import { Mask } from "./mask.js";
import { PictureError, describe, fit, openPicture, scaled } from "./picture.js";
import { Results, curl } from "./results.js";
import { Stage } from "./stage.js";

const FILL_KEY = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ ⏎" : "Ctrl ⏎";
const BRUSH_OVER = "Brush over what shall change.";

let bounds = [64, 1024]; // of a side, until the server has told its own
let picture = null; // {canvas, natural}
let work = null; // {abort, begin, queued} while a picture is being made
const wished = {}; // what live mode keeps: its seed, and the mask as a picture
const mask = new Mask($("mask"), ready);
const stage = new Stage(mask);
const results = new Results(showResult);
const live = new Live(liveWish, showLive, sayLive);

function say(text, kind = "") {
  $("status").textContent = text;
  $("status-line").dataset.kind = kind;
  $("clock").textContent = "";
}

/** What the buttons may do now. */
function ready() {
  $("undo").disabled = !mask.canUndo || !!work;
  $("redo").disabled = !mask.canRedo || !!work;
  for (const id of ["clear", "invert", "brush", "eraser", "size"]) $(id).disabled = !picture || !!work;
  if (picture && !work && stage.mode === "mask") say(mask.empty ? BRUSH_OVER : "Ready to fill.");
  live.change();
}

function setMode(mode) {
  stage.mode = mode;
  $("mask-bar").hidden = mode === "compare";
  $("result-bar").hidden = mode !== "compare";
  $("empty").hidden = mode !== "empty";
  if (mode === "mask" && picture) {
    stage.size(picture.canvas.width, picture.canvas.height);
    $("caption").textContent = describe(picture);
  }
  ready();
}

/** Begins anew with a photo. */
function usePicture(opened) {
  picture = opened;
  const { width, height } = opened.canvas;
  $("photo").width = width;
  $("photo").height = height;
  drawPhoto(opened.canvas);
  setMode("mask");
  mask.reset(width, height);
  $("facts").hidden = true;
}

function drawPhoto(source) {
  const { width, height } = $("photo");
  $("photo").getContext("2d").drawImage(source, 0, 0, width, height);
}

/** What live mode wants now; nothing while there is no photo or no mask. */
function liveWish() {
  if (!picture || mask.empty || stage.mode !== "mask" || !$("prompt").value.trim()) return null;
  const [width, height] = fit(picture.canvas.width, picture.canvas.height, bounds, form.longest(bounds));
  const { samples, ...values } = form.request();
  wished.seed ??= crypto.getRandomValues(new Uint32Array(1))[0]; // kept, so that only the change shows
  if (wished.step !== mask.steps[mask.at]) Object.assign(wished, { step: mask.steps[mask.at], mask: mask.picture() });
  return {
    values: { seed: wished.seed, ...values, width, height },
    pictures: { init_image: picture.canvas, mask_image: wished.mask },
  };
}

async function showLive(blob, { type, step, steps }) {
  const shown = picture;
  const bitmap = await createImageBitmap(blob);
  if (live.on && picture === shown) drawPhoto(bitmap);
  bitmap.close();
  if (live.on && !work) say(type === "result" ? "Live: done." : `Live: step ${step} of ${steps}.`);
}

function sayLive(text, ended) {
  if (ended) setLive(false);
  say(text, "error");
}

function setLive(on) {
  $("live").checked = on;
  document.body.toggleAttribute("data-live", on);
  if (on) return live.start();
  live.stop();
  if (picture) drawPhoto(picture.canvas);
}

async function open(blob) {
  if (work) return;
  try {
    usePicture(await openPicture(blob, bounds));
    $("mask").focus({ preventScroll: true });
  } catch (error) {
    if (!(error instanceof PictureError)) throw error;
    say(error.message, "error");
  }
}

async function openDemo() {
  const [photo, white] = await Promise.all(
    ["photo", "mask"].map(async (name) => (await fetch(here(`playground/demo-${name}.png`))).blob()),
  );
  await open(photo);
  const bitmap = await createImageBitmap(white);
  mask.load(bitmap);
  bitmap.close();
  if (!$("prompt").value.trim()) $("prompt").value = "a sunflower";
}

async function showResult(result) {
  if (work) return;
  await results.show(result);
  const painting = document.activeElement === $("mask");
  stage.size(result.width, result.height);
  setMode("compare");
  if (painting) $("divider").focus({ preventScroll: true });
  $("caption").textContent = `${result.width} × ${result.height} · ${result.request.prompt}`;
  stage.reveal();
}

/** Asks for the picture, shows how it goes, and shows what comes. */
async function fill() {
  if (work) return cancel();
  form.clearErrors();
  if (!picture) return say("Choose a photo first.", "error");
  if (stage.mode === "compare") setMode("mask");
  if (mask.empty) return say("Brush over the part that shall change first.", "error");
  if (live.on) setLive(false);
  begin();
  try {
    const result = await make(form.request(), work.abort.signal);
    end();
    await showResult(result);
  } catch (error) {
    const { queued } = work ?? {};
    end();
    fail(error, queued);
  }
}

async function make(request, signal) {
  const size = fit(picture.canvas.width, picture.canvas.height, bounds, form.longest(bounds));
  const [width, height] = size;
  const pictures = [scaled(picture.canvas, width, height), scaled(mask.picture(), width, height)];
  const [before, hole] = await Promise.all(pictures.map(toBlob));
  shimmer(hole);
  const [init_image, mask_image] = await Promise.all([before, hole].map(toDataUri));
  const { key, ...asked } = request;
  const sent = performance.now();
  const answer = await paint({ key, ...asked, init_image, mask_image, width, height }, signal, queued);
  const blobs = await Promise.all(answer.output.map((link) => download(link, signal)));
  const trip = (performance.now() - sent) / 1000;
  const made = blobs.map((after, i) => {
    const seed = answer.meta.seed + i;
    const name = `edgefill-${answer.id}${blobs.length > 1 ? `-${i + 1}` : ""}.png`;
    return { before, after, mask: hole, width, height, name, seed, trip, server: answer.generationTime, request: { ...asked, samples: 1 } };
  });
  if (answer.nsfw_content_detected) say("The safety checker made a picture black.", "error");
  else if (blobs.length > 1) say(`${blobs.length} pictures are done; they are in the strip.`, "good");
  else say("Done. Drag over the picture to compare.", "good");
  return made.reverse().map((one) => results.add(one)).at(-1);
}

function begin() {
  work = { abort: new AbortController(), begin: performance.now(), queued: false };
  document.body.dataset.working = "";
  stage.locked = true;
  $("ring").hidden = true;
  $("fill-label").textContent = "Cancel";
  $("fill-key").textContent = "Esc";
  $("progress").hidden = false;
  $("facts").hidden = true;
  ready();
  say("The server is at work.");
  stage.reach();
  work.timer = setInterval(() => {
    $("clock").textContent = `${((performance.now() - work.begin) / 1000).toFixed(1)} s`;
  }, 100);
}

function end() {
  clearInterval(work?.timer);
  work = null;
  delete document.body.dataset.working;
  stage.locked = false;
  $("fill-label").textContent = "Fill";
  $("fill-key").textContent = FILL_KEY;
  $("progress").hidden = true;
  $("shimmer").hidden = true;
  const [text, kind] = [$("status").textContent, $("status-line").dataset.kind];
  ready();
  say(text, kind);
}

function queued({ eta, unreachable }) {
  work.queued = true;
  const clock = $("clock").textContent;
  say(unreachable ? "The server does not answer now. Asking again…" : `Not done yet. The server expects about ${Math.ceil(eta)} s more.`);
  $("clock").textContent = clock;
}

function cancel() {
  work.abort.abort();
}

function fail(error, wasQueued) {
  if (error.name === "AbortError") {
    return say(wasQueued ? "Not waiting any more. The server makes the picture all the same." : "Cancelled.");
  }
  if (!(error instanceof ServerError || error instanceof PictureError)) {
    say("Something went wrong in this page.", "error");
    throw error;
  }
  const field = form.showError(error.message);
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  say(field ? "Not filled: see the marked field." : error.message + wait, "error");
  if (!field) $("status-line").scrollIntoView({ block: "nearest" });
}

/** Light that moves over the hole while it is being filled. */
function shimmer(hole) {
  const url = URL.createObjectURL(hole);
  const layer = $("shimmer");
  layer.style.setProperty("--hole", `url("${url}")`);
  layer.hidden = false;
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function setEraser(erase) {
  stage.erase = erase;
  $("brush").setAttribute("aria-pressed", String(!erase));
  $("eraser").setAttribute("aria-pressed", String(erase));
}

function grow(factor) {
  const size = $("size");
  size.value = clamp(Math.round(size.value * factor), Number(size.min), Number(size.max));
  stage.preview();
}

const KEYS = {
  b: () => setEraser(false),
  e: () => setEraser(true),
  "[": () => grow(1 / 1.2),
  "]": () => grow(1.2),
  "+": () => stage.zoomBy(1.5),
  "=": () => stage.zoomBy(1.5),
  "-": () => stage.zoomBy(1 / 1.5),
  0: () => stage.fit(),
};

function onKey(event) {
  const command = event.ctrlKey || event.metaKey;
  const writing = event.target.matches("textarea, input:not([type=range])");
  if (event.key === "Escape" && work) cancel();
  else if (command && event.key === "Enter") $("form").requestSubmit();
  else if (command && !writing && !work && stage.mode === "mask" && /^[zy]$/i.test(event.key)) {
    if (event.key.toLowerCase() === "y" || event.shiftKey) mask.redo();
    else mask.undo();
  } else if (!command && !event.altKey && !work && event.target === $("mask") && KEYS[event.key.toLowerCase()]) {
    KEYS[event.key.toLowerCase()]();
  } else return;
  event.preventDefault();
}

function onDrag(event) {
  if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
  event.preventDefault();
  $("viewport").toggleAttribute("data-over", event.type === "dragover" && !work);
  if (event.type === "drop" && event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
}

function onPaste(event) {
  const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  open(file);
}

async function copyCurl() {
  try {
    await navigator.clipboard.writeText(curl(results.shown));
    say("Copied. It reads photo.png and mask.png from the folder it runs in.");
  } catch {
    say("The browser does not let this page copy.", "error");
  }
}

async function reuse() {
  const { after } = results.shown;
  await open(after);
}

const CLICKS = {
  open: () => $("file").click(),
  choose: () => $("file").click(),
  demo: openDemo,
  brush: () => setEraser(false),
  eraser: () => setEraser(true),
  undo: () => mask.undo(),
  redo: () => mask.redo(),
  clear: () => mask.clear(),
  invert: () => mask.invert(),
  edit: () => {
    setMode("mask");
    $("mask").focus({ preventScroll: true });
  },
  reuse,
  curl: copyCurl,
  "fact-seed": () => {
    $("seed").value = $("fact-seed").textContent;
    say("The next picture uses this seed.");
  },
};

async function start() {
  for (const [id, act] of Object.entries(CLICKS)) $(id).addEventListener("click", act);
  $("size").addEventListener("input", () => stage.preview());
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) open($("file").files[0]);
    $("file").value = "";
  });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    fill();
  });
  $("chips").addEventListener("click", ({ target }) => {
    if (!target.dataset.prompt) return;
    $("prompt").value = target.dataset.prompt;
    $("prompt").dispatchEvent(new Event("input", { bubbles: true }));
  });
  $("live").addEventListener("change", () => setLive($("live").checked));
  $("form").addEventListener("input", () => live.change());
  document.addEventListener("keydown", onKey);
  document.addEventListener("paste", onPaste);
  for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, onDrag);
  setMode("empty");
  $("fill-key").textContent = FILL_KEY;
  try {
    const about = await (await fetch(here("playground/server.json"))).json();
    bounds = about.bounds.width;
    form.prepare(about);
  } catch (error) {
    say("The server cannot be reached. Load this page again when it runs.", "error");
    throw error;
  } finally {
    document.body.dataset.ready = "";
  }
}

start();
