// The clips of a film as elements: pictures, how each goes together with the others, and a button each.

import { api } from "../../../scripts/api.js";
import { make } from "../page.js";

const JOIN = "Motion over the join with the clip before, against the motion around it. 1 is even; below 0.5 the picture "
  + "stands still, above 2 it jumps. A hard cut has the difference of its two frames instead, 0 to 1: over 0.165 it is a new shot.";
const DRIFT = "Distance of colours and contrast from clip 1 (CIE Lab). Below 2 nobody sees it; from 10 on it is strong. "
  + "A new scene changes it as much as drift does: compare clips of one scene.";

export class FilmView {
  /** again(number): clip `number`, counted from 1, is asked for. */
  constructor(again) {
    this.again = again;
    this.status = make("p", { role: "status" });
    this.progress = make("div", { className: "videomemory-progress" });
    this.strip = make("ol", { className: "videomemory-strip", tabIndex: 0, ariaLabel: "Clips of the film" });
    this.element = make("div", { className: "videomemory-film" }, this.status, this.progress, this.strip);
    this.rows = new Map();
    [this.name, this.scores, this.fixed] = ["", [], ""];
  }

  /** What is on disk, as GET /videomemory/run tells it; clips is null where nobody knows: then what is shown stays.
   *  message: why. again: what the node asks for, in words; fixed: why nothing can be asked for here. */
  showClips({ clips, name, message, again, fixed }) {
    this.status.textContent = message || summary(clips, again);
    this.status.title = this.status.textContent;
    if (!clips) return;
    this.fixed = fixed;
    const before = this.rows;
    if (name !== this.name) this.scores = [];
    this.name = name;
    this.rows = new Map(clips.map((clip) => [clip.index, this.row(clip, name, before.get(clip.index))]));
    const items = [...this.rows.values()].map((row) => row.item), there = this.strip.children;
    if (items.length !== there.length || items.some((item, at) => item !== there[at])) {
      this.strip.replaceChildren(...items); // takes the focus from a button
    }
    this.showScores(this.scores);
  }

  /** The answer of GET /videomemory/scores. */
  showScores(scores) {
    this.scores = scores;
    for (const { index, join, drift } of scores) {
      const row = this.rows.get(index);
      if (!row) continue;
      tell(row.join, "join", join, 2, JOIN);
      tell(row.drift, "drift", drift, 1, DRIFT);
    }
  }

  /** A line about the film that is being made; "" = none is. */
  showProgress(line) {
    this.progress.textContent = this.progress.title = line;
  }

  row(clip, name, before) {
    const number = clip.index + 1;
    const key = JSON.stringify([name, clip, this.fixed]);
    if (before?.key === key) return before;
    const source = api.apiURL(`/videomemory/frame?name=${encodeURIComponent(name)}&clip=${clip.index}&v=${clip.picture}`);
    const picture = clip.picture ? make("img", { src: source, alt: `Clip ${number}: ${clip.note}`, loading: "lazy" })
      : make("div", { className: "videomemory-blank", textContent: clip.status });
    const again = make("button", { type: "button", textContent: "Again", ariaLabel: `Make clip ${number} again`,
      disabled: Boolean(this.fixed), title: this.fixed || "The next run makes this clip again with another seed and keeps the others" });
    again.addEventListener("click", () => this.again(number));
    const [join, drift] = [make("small"), make("small")];
    const label = make("span", { textContent: `${number}${clip.take > 1 ? ` (take ${clip.take})` : ""}` });
    return { key, join, drift, item: make("li", { title: clip.note }, picture, label, again, join, drift) };
  }
}

function summary(clips, again) {
  const done = clips.filter((clip) => clip.status === "done");
  if (!clips.length) return "No clip of this run is on disk yet.";
  const timed = done.filter((clip) => clip.seconds > 0);
  const mean = timed.reduce((sum, clip) => sum + clip.seconds, 0) / timed.length;
  const words = `${done.length} of ${clips.length} clips on disk are finished${timed.length ? `, ${mean.toFixed(1)} s each` : ""}.`;
  return again ? `${words} Set to make again: ${again} (what was made with this seed is kept).` : words;
}

function tell(element, name, score, digits, meaning) {
  element.textContent = score ? `${name}: ${score.word} ${score.value.toFixed(digits)}` : "";
  element.title = score ? `${score.note ? `${score.note}. ` : ""}${meaning}` : "";
}
