// Film strip on Render Short: a picture per clip on disk, how it goes together with the others, a button that asks for it
// again, and how long the film will take.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { FilmView } from "./film/view.js";
import { addPanel, addStyles, asOneStep, lookEvery, whileUsed } from "./page.js";

const NODE = "VideoMemoryRenderShort";
const HEIGHT = 216;
const LOOK_MS = 2000;
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

app.registerExtension({
  name: "VideoMemory.FilmStrip",
  setup: addStyles,

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const widgetOf = (name) => node.widgets.find((widget) => widget.name === name);
    const view = new FilmView((clip) => askAgain(clip, widgetOf));
    addPanel(node, "film_strip", view.element, HEIGHT);
    followProgress(node, view);
    let [shown, scored, busy] = ["", "", false];
    lookEvery(node, LOOK_MS, async () => {
      if (busy || document.hidden || !view.element.isConnected) return;
      busy = true;
      try {
        const state = await stateOf(widgetOf);
        if (JSON.stringify(state) !== shown) view.showClips(state);
        shown = JSON.stringify(state);
        const pictures = state.name + state.clips.map((clip) => clip.picture);
        if (pictures !== scored) {
          const scores = state.clips.some((clip) => clip.picture) ? await ask("scores", state.name) : [];
          if (scores) view.showScores(scores);
          scored = scores && pictures; // what was not answered is asked again
        }
      } finally {
        busy = false;
      }
    });
  },
});

async function stateOf(widgetOf) {
  const name = String(widgetOf("run_name")?.value ?? "");
  const kind = widgetOf("regenerate")?.value ?? "none";
  return { name, clips: await ask("run", name, "clips") ?? [], again: kind === "none" ? "" : `${kind} ${widgetOf("regenerate_clip").value}` };
}

/** The list that a route of the server gives for this run; null where there is none, or no server. */
async function ask(route, name, key = route) {
  const answer = await api.fetchApi(`/videomemory/${route}?name=${encodeURIComponent(name)}`).catch(() => null);
  return answer?.ok ? (await answer.json().catch(() => null))?.[key] ?? null : null;
}

/** Show what the server says under the node while it makes the film: the clip, the chunk and the time that is left. */
function followProgress(node, view) {
  const isOurs = (id) => String(id) === String(node.id) || String(id).endsWith(`:${node.id}`);
  const said = ({ detail }) => isOurs(detail.nodeId) && view.showProgress(detail.text);
  const ended = () => view.showProgress("");
  whileUsed(node, () => {
    api.addEventListener("progress_text", said);
    for (const event of ENDS) api.addEventListener(event, ended);
    return () => {
      api.removeEventListener("progress_text", said);
      for (const event of ENDS) api.removeEventListener(event, ended);
    };
  });
}

/** Set the node's own inputs; nothing is queued. */
function askAgain(number, widgetOf) {
  const values = { regenerate: "only", regenerate_clip: number, regenerate_seed: Math.floor(Math.random() * 2 ** 32) };
  asOneStep(() => {
    for (const [name, value] of Object.entries(values)) {
      const widget = widgetOf(name);
      widget.value = value;
      widget.callback?.(value);
    }
  });
}
