// A memory as elements: a picture per chunk in the order of the film, with its role and what it takes in words, and
// everything about the chosen one below.

import { api } from "../../../scripts/api.js";
import { make } from "../page.js";

const NOTHING = "Run the workflow: then every chunk that the memory holds is shown here.";
const NO_PROMPT = "not known (not encoded by Prompt for Clip)";

export class MemoryView {
  constructor() {
    this.title = make("p", { className: "videomemory-held", role: "status" });
    this.strip = make("ol", { className: "videomemory-chunks", ariaLabel: "Chunks that the memory holds, in the order of the film" });
    this.told = make("div", { className: "videomemory-told", tabIndex: 0, role: "region", ariaLabel: "The chosen chunk" });
    this.element = make("div", { className: "videomemory-memory" }, this.title, this.strip, this.told);
    this.strip.addEventListener("keydown", (event) => this.step(event));
    this.show(undefined);
  }

  /** The node's output as memory/strip.py makes it, or undefined. */
  show(strip) {
    this.chunks = strip?.chunks ?? [];
    this.title.textContent = strip ? [strip.title, ...strip.sizes].join(" · ") : NOTHING;
    this.title.title = this.title.textContent;
    this.buttons = this.chunks.map((chunk, index) => this.button(chunk, index));
    this.strip.replaceChildren(...this.buttons.map((button) => make("li", {}, button)));
    this.told.textContent = "";
    if (this.chunks.length) this.choose(0);
  }

  button(chunk, index) {
    const { filename, subfolder, type } = chunk.picture;
    const query = new URLSearchParams({ filename, subfolder, type });
    const picture = make("img", { src: api.apiURL(`/view?${query}`), alt: "", loading: "lazy" });
    const button = make("button", { type: "button", ariaLabel: sentence(chunk), title: sentence(chunk) }, picture,
      make("b", { textContent: chunk.role }), make("span", { textContent: span(chunk) }), make("small", { textContent: chunk.stored }));
    button.dataset.role = chunk.role;
    for (const event of ["focus", "click", "pointerenter"]) button.addEventListener(event, () => this.choose(index));
    return button;
  }

  /** The chosen chunk is the only one that Tab comes to; the arrow keys lead to the others. */
  choose(index) {
    this.buttons.forEach((button, at) => {
      button.ariaPressed = String(at === index);
      button.tabIndex = at === index ? 0 : -1;
    });
    this.told.textContent = sentence(this.chunks[index]);
  }

  step(event) {
    const at = this.buttons.indexOf(document.activeElement);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: this.buttons.length - 1 }[event.key];
    if (at < 0 || !this.buttons[to]) return;
    event.preventDefault();
    this.buttons[to].focus();
  }
}

function span({ start_s: start, end_s: end }) {
  return end - start < 0.05 ? `${start.toFixed(2)} s` : `${start.toFixed(1)}–${end.toFixed(1)} s`;
}

function sentence(chunk) {
  const drift = [["latents", chunk.distance, 2], ["colour", chunk.colour, 1]].filter(([, value]) => value != null)
    .map(([name, value, digits]) => `${name} ${value.toFixed(digits)}`);
  return [`${chunk.role} (${chunk.means}), ${span(chunk)} of the film.`, `Prompt: ${chunk.prompt || NO_PROMPT}.`,
    `${chunk.stored}.`, drift.length ? `Drift: ${drift.join(", ")}.` : ""].filter(Boolean).join("\n");
}
