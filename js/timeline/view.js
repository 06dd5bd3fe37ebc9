// The timeline as elements: scenes as blocks, joins to drag, the words of the chosen scene, what every clip is told.

import { make } from "../page.js";
import { clipPrompts, moveJoin, parseScenes, remove, retell, split, time } from "./scenes.js";

const STEP_S = 0.5; // of a join that is dragged or moved by a key; half of it with Shift

/** An element that shows `read()` = {scenes, identity, hero, reanchorS, clipS, filmS} and gives edits to `write(text)`. */
export class TimelineView {
  constructor(read, write) {
    this.read = read;
    this.write = write;
    this.chosen = 0;
    this.element = make("div", { className: "videomemory-timeline" });
    this.track = make("div", { className: "videomemory-track", role: "group", ariaLabel: "Scenes" });
    this.words = make("input", { type: "text", ariaLabel: "What happens in the chosen scene" });
    this.add = make("button", { type: "button", textContent: "Split", title: "Cut the chosen scene in two" });
    this.drop = make("button", { type: "button", textContent: "Delete", title: "Take the chosen scene away" });
    this.note = make("p", { className: "videomemory-note", role: "status" });
    this.clips = make("ol", { className: "videomemory-clips", ariaLabel: "What every clip is told", tabIndex: 0 });
    const row = make("div", { className: "videomemory-row" });
    row.append(this.words, this.add, this.drop);
    this.element.append(this.track, row, this.note, this.clips);
    this.words.addEventListener("change", () => this.edit((text, scenes) => retell(text, scenes, this.chosen, this.words.value)));
    this.add.addEventListener("click", () => this.edit((text, scenes) => split(text, scenes, this.chosen, STEP_S)));
    this.drop.addEventListener("click", () => this.edit((text, scenes) => remove(text, scenes, this.chosen)));
  }

  /** Draw again only when the node says something else: drawing takes the focus from joins and blocks. */
  look() {
    if (JSON.stringify(this.read()) !== this.shown) this.show();
  }

  /** Draw what the node says now. */
  show() {
    const state = this.read();
    this.shown = JSON.stringify(state);
    const { scenes, error } = state.linked ? { scenes: [], error: { message: state.linked } } : parseScenes(state.scenes, state.filmS);
    this.scenes = scenes;
    this.chosen = Math.min(this.chosen, Math.max(0, scenes.length - 1));
    this.note.textContent = error ? (error.line === undefined ? "" : `Line ${error.line + 1}: `) + error.message : "";
    const lengths = state.clipS > 0 && state.filmS > 0 && state.filmS / state.clipS <= 1000;
    const clips = scenes.length && lengths ? clipPrompts(scenes, state) : [];
    this.track.replaceChildren(...this.blocks(state), ...this.marks(clips, state), ...this.joins(state));
    this.clips.replaceChildren(...clips.map((clip) => clipRow(clip)));
    for (const control of [this.words, this.add, this.drop]) control.disabled = !scenes.length;
    this.drop.disabled = scenes.length < 2;
    if (document.activeElement !== this.words) this.words.value = scenes[this.chosen]?.text ?? "";
  }

  edit(change) {
    const text = change(this.read().scenes, this.scenes);
    if (text !== this.read().scenes) this.write(text);
    this.show();
  }

  blocks({ filmS }) {
    return this.scenes.map((scene, index) => {
      const span = `${time(scene.startS)} to ${time(scene.endS)} s`;
      const label = scene.text.replaceAll("{hero}", "").trim() || scene.text; // blocks are narrow
      const block = make("button", { type: "button", className: "videomemory-scene", textContent: label,
        title: `${span}: ${scene.text}`, ariaPressed: String(index === this.chosen) });
      place(block, scene.startS / filmS, (scene.endS - scene.startS) / filmS);
      block.addEventListener("click", () => { this.chosen = index; this.show(); this.track.children[index]?.focus(); });
      return block;
    });
  }

  marks(clips, { filmS }) {
    return clips.filter((clip) => clip.anchored).map((clip) => {
      const mark = make("span", { className: "videomemory-mark", title: `${time(clip.startS)} s: the identity is named`, ariaHidden: "true" });
      place(mark, clip.startS / filmS);
      return mark;
    });
  }

  joins({ filmS }) {
    return this.scenes.slice(1).map((scene, index) => {
      const join = make("div", { className: "videomemory-join", role: "slider", tabIndex: 0,
        ariaLabel: `Join of scenes ${index + 1} and ${index + 2}, in seconds`, ariaValueMin: "0", ariaValueMax: time(filmS),
        ariaValueNow: time(scene.startS), ariaValueText: `${time(scene.startS)} s` });
      place(join, scene.startS / filmS);
      join.addEventListener("pointerdown", (event) => this.drag(event, index, filmS));
      join.addEventListener("keydown", (event) => this.step(event, index, scene.startS));
      return join;
    });
  }

  /** Follow the pointer; the text is written when it is let go. */
  drag(event, index, filmS) {
    const join = event.currentTarget;
    const stepS = event.shiftKey ? STEP_S / 2 : STEP_S;
    const secondsAt = (x) => {
      const box = this.track.getBoundingClientRect();
      return ((x - box.left) / box.width) * filmS;
    };
    const follow = (moved) => place(join, Math.min(1, Math.max(0, secondsAt(moved.clientX) / filmS)));
    const end = (released) => {
      join.removeEventListener("pointermove", follow);
      if (released.type === "pointerup") this.edit((text, scenes) => moveJoin(text, scenes, index, secondsAt(released.clientX), stepS));
      else this.show();
    };
    join.setPointerCapture(event.pointerId);
    join.addEventListener("pointermove", follow);
    for (const name of ["pointerup", "pointercancel"]) join.addEventListener(name, end, { once: true });
    event.preventDefault();
  }

  step(event, index, startS) {
    const direction = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!direction) return;
    const stepS = event.shiftKey ? STEP_S / 2 : STEP_S;
    event.preventDefault();
    this.edit((text, scenes) => moveJoin(text, scenes, index, startS + direction * stepS, stepS));
    this.track.querySelectorAll(".videomemory-join")[index]?.focus();
  }
}

function clipRow(clip) {
  const row = make("li", { textContent: clip.text, title: clip.anchored ? "names the identity" : "" });
  row.classList.toggle("videomemory-anchored", clip.anchored);
  row.prepend(make("span", { textContent: `${time(clip.startS)}–${time(clip.endS)} s` }));
  return row;
}

function place(element, left, width) {
  element.style.left = `${100 * left}%`;
  if (width !== undefined) element.style.width = `${100 * width}%`;
}
