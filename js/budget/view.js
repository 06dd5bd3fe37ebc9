// The plan of a VRAM Budget Gate as elements: a stacked bar per phase against the card, and what was given up.

import { make } from "../page.js";

const COLORS = { weights: "#4e79a7", memory: "#f28e2b", activations: "#59a14f", decode: "#b07aa1", context: "#9c755f",
  desktop: "#bab0ac", others: "#e15759" };
const MORE = ["#76b7b2", "#edc948", "#ff9da7", "#86bcb6", "#d37295", "#a0cbe8"];

export class BudgetView {
  constructor() {
    this.card = make("p", { className: "videomemory-card", textContent: "…" });
    this.verdict = make("p", { className: "videomemory-verdict", role: "status" });
    this.phases = make("div", { className: "videomemory-phases" });
    this.legend = make("p", { className: "videomemory-legend", ariaHidden: "true" });
    this.said = make("ul", { className: "videomemory-said", tabIndex: 0, ariaLabel: "What the plan gives up" });
    this.element = make("div", { className: "videomemory-budget" }, this.card, this.verdict, this.phases, this.legend, this.said);
    this.colors = new Map(Object.entries(COLORS));
  }

  /** The card as it is now: {name, total, free}. */
  showCard(card) {
    this.card.textContent = `${card.name}: ${gigabytes(card.free)} of ${gigabytes(card.total)} free now`;
  }

  /** The answer of POST /videomemory/plan, for a node that runs in so many places. */
  showPlan(plan, places = 1) {
    const { fits, message, phases = [], card, budget = 0, concessions = [] } = plan;
    const verdict = { true: `Fits ${gigabytes(budget)}: ${plan.width} x ${plan.height}, ${plan.length} frames a clip`,
      false: "Does not fit", null: "Cannot be said yet" }[fits];
    if (this.verdict.textContent !== verdict) this.verdict.textContent = verdict; // what is set is read out, new or not
    this.verdict.dataset.fits = String(fits);
    const taken = card ? [{ name: "desktop", bytes: card.desktop }, { name: "others", bytes: card.others }].filter((part) => part.bytes) : [];
    const beside = taken.reduce((sum, part) => sum + part.bytes, 0);
    const whole = Math.max(budget + beside, ...phases.map((phase) => phase.peak + beside), 1);
    this.phases.replaceChildren(...phases.map((phase) => this.row(phase, taken, budget + beside, whole)));
    const names = new Set([...taken, ...phases.flatMap((phase) => phase.parts)].filter((part) => part.bytes > 0).map((part) => part.name));
    this.legend.replaceChildren(...[...names].map((name) => this.key(name)));
    const whose = places > 1 ? [`The plan of the first of ${places} places that this node runs in.`] : [];
    const sentences = [...whose, ...(fits ? concessions : message.split("\n").filter(Boolean))];
    this.said.replaceChildren(...sentences.map((sentence) => make("li", { textContent: sentence })));
  }

  /** Nothing can be asked: why. */
  showNothing(sentence) {
    this.showPlan({ fits: null, message: sentence });
  }

  row(phase, taken, limit, whole) {
    const parts = [...taken, ...phase.parts].filter((part) => part.bytes > 0);
    const words = parts.map((part) => `${part.name} ${gigabytes(part.bytes)}`).join(", ");
    const bar = make("div", { className: "videomemory-bar", role: "img", ariaLabel: `${phase.name}: ${gigabytes(phase.peak)} of ${gigabytes(limit)}; ${words}` });
    for (const part of parts) {
      const piece = make("span", { title: `${part.name}: ${gigabytes(part.bytes)}` });
      Object.assign(piece.style, { width: `${(100 * part.bytes) / whole}%`, background: this.color(part.name) });
      bar.append(piece);
    }
    const mark = make("i", { title: `the budget: ${gigabytes(limit)}` });
    mark.style.left = `${(100 * limit) / whole}%`;
    bar.append(mark);
    return make("div", { className: "videomemory-phase" }, make("span", { textContent: phase.name }), bar, make("span", { textContent: gigabytes(phase.peak) }));
  }

  key(name) {
    const patch = make("i");
    patch.style.background = this.color(name);
    return make("span", {}, patch, name);
  }

  color(name) {
    if (!this.colors.has(name)) this.colors.set(name, MORE[(this.colors.size - Object.keys(COLORS).length) % MORE.length]);
    return this.colors.get(name);
  }
}

export function gigabytes(bytes) {
  return bytes >= 1e8 ? `${(bytes / 2 ** 30).toFixed(1)} GB` : `${Math.round(bytes / 2 ** 20)} MB`;
}
