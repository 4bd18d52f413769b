// The HTTP contract, spoken as any client speaks it.

import { clamp, here } from "./dom.js";

const ROUTE = "api/v6/realtime";
const LONGEST_PAUSE = 15; // seconds between two questions after a queued picture
const SHORTEST_PAUSE = 0.5;

/** An answer that says no. `status` is the HTTP status, 0 where the server was not reached. */
export class ServerError extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/**
 * Asks for pictures and waits for them: as long as the server expects before the first question
 * after a queued picture, half as long before the later ones.
 *
 * @param {object} request The body of the contract's request.
 * @param {AbortSignal} signal Aborting leaves; a request that still waits is then cancelled there.
 * @param {(state: {eta?: number, unreachable?: boolean}) => void} onQueued Told of every answer
 *   `processing`, and of every question that was not answered.
 * @returns {Promise<object>} The success answer.
 */
export async function paint(request, signal, onQueued) {
  let answer = await post(here(`${ROUTE}/inpaint`), request, signal);
  for (let share = 1; answer.status === "processing"; share = 0.5) {
    onQueued({ eta: answer.eta });
    await pause(clamp(share * answer.eta, SHORTEST_PAUSE, LONGEST_PAUSE), signal);
    answer = await again(answer, request.key, signal, onQueued);
  }
  return answer;
}

/** The picture behind a link of an answer, through the address that this page came from. */
export async function download(link, signal) {
  const name = new URL(link).pathname.split("/").pop();
  const response = await reach(here(`outputs/${name}`), { signal });
  if (!response.ok) throw await refusal(response);
  return response.blob();
}

/** Asks after a queued picture. It is kept through a restart, so a silent server is asked again. */
async function again(answer, key, signal, onQueued) {
  try {
    return await post(here(`${ROUTE}/fetch/${answer.id}`), { key }, signal);
  } catch (error) {
    if (!(error instanceof ServerError) || ![0, 502, 503, 504].includes(error.status)) throw error;
    onQueued({ unreachable: true });
    return { ...answer, eta: 2 };
  }
}

async function post(url, body, signal) {
  const response = await reach(url, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const answer = await response.json();
  if (answer.status === "error") throw new ServerError(answer.message, { status: response.status });
  return answer;
}

async function reach(url, options) {
  try {
    return await fetch(url, { cache: "no-store", credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
}

async function refusal(response) {
  const { status } = response;
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  try {
    const { message } = await response.json();
    return new ServerError(message, { status, retryAfter });
  } catch {
    return new ServerError(`The server answered with status ${status}.`, { status, retryAfter });
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const leave = () => {
      clearTimeout(timer);
      reject(new DOMException("left", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", leave);
      resolve();
    }, seconds * 1000);
    if (signal.aborted) leave();
    else signal.addEventListener("abort", leave, { once: true });
  });
}
