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
    [this.blocks, this.marks, this.joins] = [0, 1, 2].map(() => make("div", { className: "videomemory-group" }));
    this.track.append(this.blocks, this.marks, this.joins);
    this.note = make("p", { className: "videomemory-note", role: "status" });
    this.clips = make("ol", { className: "videomemory-clips", ariaLabel: "What every clip is told", tabIndex: 0 });
    const row = make("div", { className: "videomemory-row" });
    row.append(this.words, this.add, this.drop);
    this.element.append(this.track, row, this.note, this.clips);
    this.listen();
  }

  listen() {
    this.words.addEventListener("change", () => this.edit((text, scenes) => retell(text, scenes, this.chosen, this.words.value)));
    this.words.addEventListener("blur", () => this.show()); // what had to wait for it
    this.add.addEventListener("click", () => this.edit((text, scenes) => split(text, scenes, this.chosen, STEP_S)));
    this.drop.addEventListener("click", () => {
      this.edit((text, scenes) => remove(text, scenes, this.chosen));
      if (this.drop.disabled) this.blocks.firstElementChild?.focus(); // a disabled button loses it
    });
  }

  /** Draw again only when the node says something else. */
  look() {
    if (JSON.stringify(this.read()) !== this.shown) this.show();
  }

  /** Draw what the node says now; what stays on the page keeps the focus, and a press on it stays a click. */
  show() {
    const state = this.read();
    this.shown = JSON.stringify(state);
    const { scenes, error } = state.linked ? { scenes: [], error: { message: state.linked } } : parseScenes(state.scenes, state.filmS);
    this.scenes = scenes;
    this.chosen = Math.min(this.chosen, Math.max(0, scenes.length - 1));
    this.note.textContent = error ? (error.line === undefined ? "" : `Line ${error.line + 1}: `) + error.message : "";
    this.note.title = this.note.textContent;
    const lengths = state.clipS > 0 && state.filmS > 0 && state.filmS / state.clipS <= 1000;
    const clips = scenes.length && lengths && !error ? clipPrompts(scenes, state) : [];
    this.showTrack(scenes, clips.filter((clip) => clip.anchored), state.filmS);
    this.clips.replaceChildren(...clips.map((clip) => clipRow(clip)));
    this.add.disabled = !scenes.length;
    this.drop.disabled = scenes.length < 2;
    if (document.activeElement === this.words) return; // somebody writes
    this.words.disabled = !scenes.length;
    this.words.value = scenes[this.chosen]?.text ?? "";
  }

  showTrack(scenes, anchored, filmS) {
    fill(this.blocks, scenes, (index) => this.block(index), (block, scene, index) => tellScene(block, scene, index === this.chosen, filmS));
    fill(this.marks, anchored, () => make("span", { className: "videomemory-mark", ariaHidden: "true" }), (mark, clip) => {
      mark.title = `${time(clip.startS)} s: the identity is named`;
      place(mark, clip.startS / filmS);
    });
    fill(this.joins, scenes.slice(1), (index) => this.join(index), (join, scene) => tellJoin(join, scene, filmS));
  }

  edit(change) {
    const text = change(this.read().scenes, this.scenes);
    if (text !== this.read().scenes) this.write(text);
    this.show();
  }

  block(index) {
    const block = make("button", { type: "button", className: "videomemory-scene" });
    block.addEventListener("click", () => { this.chosen = index; this.show(); });
    return block;
  }

  join(index) {
    const join = make("div", { className: "videomemory-join", role: "slider", tabIndex: 0,
      ariaLabel: `Join of scenes ${index + 1} and ${index + 2}, in seconds`, ariaValueMin: "0" });
    join.addEventListener("pointerdown", (event) => this.drag(event, index));
    join.addEventListener("keydown", (event) => this.step(event, index));
    return join;
  }

  /** Follow the pointer; the text is written when it is let go. */
  drag(event, index) {
    const [join, { filmS }, over] = [event.currentTarget, this.read(), new AbortController()];
    const stepS = event.shiftKey ? STEP_S / 2 : STEP_S;
    const secondsAt = (x) => {
      const box = this.track.getBoundingClientRect();
      return ((x - box.left) / box.width) * filmS;
    };
    const follow = (moved) => place(join, Math.min(1, Math.max(0, secondsAt(moved.clientX) / filmS)));
    const end = (released) => {
      over.abort();
      if (released.type === "pointerup") this.edit((text, scenes) => moveJoin(text, scenes, index, secondsAt(released.clientX), stepS));
      else this.show();
    };
    join.setPointerCapture(event.pointerId);
    join.addEventListener("pointermove", follow, { signal: over.signal });
    for (const name of ["pointerup", "pointercancel"]) join.addEventListener(name, end, { signal: over.signal });
    event.preventDefault();
  }

  step(event, index) {
    const direction = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!direction) return;
    const stepS = event.shiftKey ? STEP_S / 2 : STEP_S;
    event.preventDefault();
    this.edit((text, scenes) => moveJoin(text, scenes, index, scenes[index + 1].startS + direction * stepS, stepS));
  }
}

/** As many elements in `parent` as there are items: create(index) makes those that are missing, the others stay. */
function fill(parent, items, create, update) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, index) => update(parent.children[index] ?? parent.appendChild(create(index)), item, index));
}

function tellScene(block, { startS, endS, text }, isChosen, filmS) {
  block.textContent = text.replaceAll("{hero}", "").trim() || text; // blocks are narrow
  block.title = `${time(startS)} to ${time(endS)} s: ${text}`;
  block.ariaPressed = String(isChosen);
  place(block, startS / filmS, (endS - startS) / filmS);
}

function tellJoin(join, { startS }, filmS) {
  Object.assign(join, { ariaValueMax: time(filmS), ariaValueNow: time(startS), ariaValueText: `${time(startS)} s` });
  place(join, startS / filmS);
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
