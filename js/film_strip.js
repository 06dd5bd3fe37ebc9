// Film strip on Render Short: a picture per clip that is on disk, and a button that asks for it again.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPanel, addStyles, lookEvery, make } from "./page.js";

const NODE = "VideoMemoryRenderShort";
const HEIGHT = 150;
const LOOK_MS = 2000;

app.registerExtension({
  name: "VideoMemory.FilmStrip",
  setup: addStyles,

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const widgetOf = (name) => node.widgets.find((widget) => widget.name === name);
    const strip = make("ol", { className: "videomemory-strip", tabIndex: 0, ariaLabel: "Clips of the film" });
    const status = make("p", { role: "status" });
    addPanel(node, "film_strip", make("div", { className: "videomemory-film" }, status, strip), HEIGHT);
    let [shown, busy] = ["", false];
    lookEvery(node, LOOK_MS, async () => {
      if (busy || document.hidden || !strip.isConnected) return;
      busy = true;
      const state = await stateOf(widgetOf).catch(() => ({ clips: [], name: "", again: "" }));
      busy = false;
      if (JSON.stringify(state) === shown) return;
      shown = JSON.stringify(state);
      status.textContent = summary(state);
      strip.replaceChildren(...state.clips.map((clip) => frameOf(clip, state, widgetOf)));
    });
  },
});

async function stateOf(widgetOf) {
  const name = String(widgetOf("run_name")?.value ?? "");
  const answer = await api.fetchApi(`/videomemory/run?name=${encodeURIComponent(name)}`);
  const { clips = [] } = await answer.json();
  const kind = widgetOf("regenerate")?.value ?? "none";
  return { name, clips, again: kind === "none" ? "" : `${kind} ${widgetOf("regenerate_clip").value}` };
}

function summary({ clips, again }) {
  const done = clips.filter((clip) => clip.status === "done");
  if (!clips.length) return "No clip of this run is on disk yet.";
  const timed = done.filter((clip) => clip.seconds > 0);
  const mean = timed.reduce((sum, clip) => sum + clip.seconds, 0) / timed.length;
  const words = `${done.length} of ${clips.length} clips on disk are finished${timed.length ? `, ${mean.toFixed(1)} s each` : ""}.`;
  return again ? `${words} The next run makes again: ${again}.` : words;
}

function frameOf(clip, { name }, widgetOf) {
  const number = clip.index + 1;
  const source = api.apiURL(`/videomemory/frame?name=${encodeURIComponent(name)}&clip=${clip.index}&v=${clip.picture}`);
  const picture = clip.picture ? make("img", { src: source, alt: `Clip ${number}: ${clip.note}`, loading: "lazy" })
    : make("div", { className: "videomemory-blank", textContent: clip.status });
  const again = make("button", { type: "button", textContent: "Again", ariaLabel: `Make clip ${number} again`,
    title: "The next run makes this clip again with another seed and keeps the others" });
  again.addEventListener("click", () => askAgain(number, widgetOf));
  return make("li", { title: clip.note }, picture, make("span", { textContent: `${number}${clip.take > 1 ? ` (take ${clip.take})` : ""}` }), again);
}

/** Set the node's own inputs; nothing is queued. */
function askAgain(number, widgetOf) {
  const values = { regenerate: "only", regenerate_clip: number, regenerate_seed: Math.floor(Math.random() * 2 ** 32) };
  for (const [name, value] of Object.entries(values)) {
    const widget = widgetOf(name);
    widget.value = value;
    widget.callback?.(value);
  }
  app.graph.setDirtyCanvas(true, true);
}
