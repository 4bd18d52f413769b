// The form: its fields, their bounds as the server tells them, and errors beside the field they name.

import { $, clamp } from "./dom.js";

const FIELDS = {
  prompt: "prompt",
  negative_prompt: "negative",
  seed: "seed",
  num_inference_steps: "steps",
  guidance_scale: "guidance",
  strength: "strength",
  samples: "samples",
  scheduler: "scheduler",
  region: "region",
  width: "longest",
  height: "longest",
};
const HINTS = {
  num_inference_steps: (low, high) => `${low} to ${high}; more is slower.`,
  guidance_scale: (low, high) => `${low} to ${high}: how literally.`,
  strength: (low, high) => `${low} to ${high}; ${low} keeps all.`,
  samples: (low, high) => `${low} to ${high} at once.`,
  width: (low, high) => `${low} to ${high}; the other side follows.`,
};
const REGIONS = { auto: "auto", full: "whole photo", mask: "round mask" };
const KEY = "edgefill-key";
const ANY_KEY = "playground";

/** Fills in what only the server knows. */
export function prepare(about) {
  for (const [field, hint] of Object.entries(HINTS)) {
    const [low, high] = about.bounds[field];
    const input = $(FIELDS[field]);
    input.min = low;
    input.max = high;
    say(FIELDS[field], hint(low, high));
  }
  $("scheduler").append(...about.schedulers.map((name) => new Option(name, name)));
  $("region").append(...about.regions.map((name) => new Option(REGIONS[name] ?? name, name)));
  $("key-field").hidden = !about.key_required;
  $("key-line").hidden = about.key_required;
  $("model-line").hidden = !about.default_model;
  const hours = about.retention_hours;
  $("keep-line").textContent = `The server keeps requests and pictures for ${hours} hour${hours === 1 ? "" : "s"}; this page keeps them until it is closed.`;
  for (const input of document.querySelectorAll("#form .field [id]")) {
    input.addEventListener("input", () => good(input.id));
  }
  if (about.key_required) {
    $("key").value = sessionStorage.getItem(KEY) ?? "";
    $("key").addEventListener("input", () => sessionStorage.setItem(KEY, $("key").value));
  }
  $("dice").addEventListener("click", () => {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    good("seed");
  });
}

/** The request without its pictures: only what was set, so that the server's own choices hold. */
export function request() {
  const values = {
    key: $("key-field").hidden ? ANY_KEY : $("key").value,
    prompt: $("prompt").value.trim(),
    negative_prompt: $("negative").value.trim(),
    seed: $("seed").value.trim(),
    num_inference_steps: typed("steps"),
    guidance_scale: typed("guidance"),
    strength: typed("strength"),
    samples: typed("samples"),
    scheduler: $("scheduler").value,
    region: $("region").value,
  };
  return Object.fromEntries(Object.entries(values).filter(([name, value]) => value !== "" || name === "key" || name === "prompt"));
}

/** The longest side that was asked for, or null. */
export function longest(bounds) {
  const value = Number($("longest").value);
  return $("longest").value.trim() && Number.isFinite(value) ? clamp(Math.round(value), ...bounds) : null;
}

/**
 * Shows an error's sentence beside the field it names.
 * @returns {string | null} The id of the field, or null where it names none.
 */
export function showError(message) {
  const id = named(message);
  if (!id) return null;
  const input = $(id);
  input.setAttribute("aria-invalid", "true");
  const hint = $(`${id}-hint`);
  hint.dataset.said ??= hint.textContent;
  hint.textContent = message;
  if (input.closest("details")) $("settings").open = true;
  input.focus();
  return id;
}

/** Takes every error back. */
export function clearErrors() {
  for (const input of document.querySelectorAll("[aria-invalid]")) good(input.id);
}

function named(message) {
  if (/\bAPI key\b/.test(message)) return $("key-field").hidden ? null : "key";
  const lower = message.toLowerCase();
  const names = Object.keys(FIELDS).sort((a, b) => b.length - a.length);
  const found = names.find((name) => lower.startsWith(`the ${name.replaceAll("_", " ")} `));
  return found ? FIELDS[found] : null;
}

function good(id) {
  const input = $(id);
  if (!input.hasAttribute("aria-invalid")) return;
  input.removeAttribute("aria-invalid");
  const hint = $(`${id}-hint`);
  hint.textContent = hint.dataset.said ?? "";
}

function say(id, text) {
  $(`${id}-hint`).textContent = text;
}

/** What a number field holds; what is no number goes out as it is, for the server to refuse. */
function typed(id) {
  const input = $(id);
  if (input.validity.badInput) return "?";
  return input.value === "" ? "" : Number(input.value);
}
