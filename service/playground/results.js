// Results of this tab: the strip of thumbnails, and what can be done with one of them.

import { $, here, seconds } from "./dom.js";

const KEPT = 24;

export class Results {
  /** `onShow` is called with a result when a person picks it. */
  constructor(onShow) {
    this.onShow = onShow;
    this.all = [];
    this.shown = null;
  }

  /**
   * Adds a result and gives it its thumbnail.
   * @param {object} result before, after, mask: blobs; width, height, name, seed; server and trip
   *   in seconds; request: the body without pictures and key.
   */
  add(result) {
    const urls = Object.fromEntries(["before", "after", "mask"].map((name) => [name, URL.createObjectURL(result[name])]));
    const kept = { ...result, urls, item: document.createElement("li") };
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Result: ${result.request.prompt}, seed ${result.seed}`);
    button.title = `${result.request.prompt} · seed ${result.seed}`;
    const picture = document.createElement("img");
    picture.alt = "";
    picture.src = urls.after;
    button.append(picture);
    button.addEventListener("click", () => this.onShow(kept));
    kept.item.append(button);
    $("strip").prepend(kept.item);
    $("strip-empty").hidden = true;
    this.all.unshift(kept);
    if (this.all.length > KEPT) this.#drop(this.all.pop());
    return kept;
  }

  /** Points everything of the result's bar at a result. */
  show(result) {
    for (const { item } of this.all) item.firstChild.removeAttribute("aria-current");
    result.item.firstChild.setAttribute("aria-current", "true");
    this.shown = result;
    $("before").src = result.urls.before;
    $("after").src = result.urls.after;
    $("after").alt = `The photo filled with: ${result.request.prompt}`;
    $("save").href = result.urls.after;
    $("save").download = result.name;
    $("save-mask").href = result.urls.mask;
    $("fact-server").textContent = seconds(result.server);
    $("fact-trip").textContent = seconds(result.trip);
    $("fact-seed").textContent = result.seed;
    $("facts").hidden = false;
    return Promise.all([$("before").decode(), $("after").decode()]);
  }

  #drop(result) {
    result.item.remove();
    for (const url of Object.values(result.urls)) URL.revokeObjectURL(url);
  }
}

/** The request as a command for a POSIX shell, the key left out. */
export function curl({ request, seed, width, height }) {
  const values = { key: "YOUR_KEY", ...request, seed, width, height };
  const body = JSON.stringify(values, null, 2).replace(/[\\$`]/g, "\\$&");
  const picture = (name) => `"data:image/png;base64,$(base64 < ${name} | tr -d '\\n')"`;
  const pictures = `,\n  "init_image": ${picture("photo.png")},\n  "mask_image": ${picture("mask.png")}\n}`;
  const url = here("api/v6/realtime/inpaint").href.replaceAll("'", "%27");
  return `curl '${url}' --json @- <<JSON\n${body.replace(/\n\}$/, pictures)}\nJSON`;
}
