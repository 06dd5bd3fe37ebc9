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
        const state = await stateOf(node, widgetOf);
        if (JSON.stringify(state) !== shown) view.showClips(state);
        shown = JSON.stringify(state);
        const pictures = state.name + state.clips?.map((clip) => clip.picture);
        if (state.clips && pictures !== scored) {
          const answer = state.clips.some((clip) => clip.picture) ? await ask("scores", state.name) : { scores: [] };
          if (answer?.scores) view.showScores(answer.scores);
          scored = answer?.scores && pictures; // what was not answered is asked again
        }
      } finally {
        busy = false;
      }
    });
  },
});

/** {name, clips, message, again, fixed}: clips is null where nobody knows them; fixed: why no clip can be asked for again. */
async function stateOf(node, widgetOf) {
  const name = String(widgetOf("run_name")?.value ?? ""), kind = widgetOf("regenerate")?.value ?? "none";
  const again = kind === "none" ? "" : `${kind} ${widgetOf("regenerate_clip").value}`;
  const linked = (node.inputs ?? []).filter((input) => input.link != null).map((input) => input.name);
  if (linked.includes("run_name")) {
    return { name: "", clips: [], message: "The run name comes over a link: the strip cannot show the film.", again: "", fixed: "" };
  }
  const fixed = linked.some((input) => input.startsWith("regenerate")) ? "What to make again comes over a link" : "";
  const answer = await ask("run", name);
  return { name, clips: answer?.clips ?? null, message: answer ? answer.message ?? "" : "The server does not answer.",
    again: fixed ? "" : again, fixed };
}

/** What a route of the server says of this run, a refusal too; null where no server answers. */
async function ask(route, name) {
  const answer = await api.fetchApi(`/videomemory/${route}?name=${encodeURIComponent(name)}`).catch(() => null);
  return answer?.ok || answer?.status === 404 ? answer.json().catch(() => null) : null;
}

/** Show what the server says under the node while it makes the film: the clip, the chunk and the time that is left.
 *  It says so to every page, and the start and the end of a run only to the one that queued it. */
function followProgress(node, view) {
  const isOurs = (id) => (node.graph?.isRootGraph === false ? String(id).endsWith(`:${node.id}`) : String(id) === String(node.id));
  let runs = false;
  const set = (now) => {
    runs = now;
    if (!now) view.showProgress("");
  };
  const events = { execution_start: () => set(true), executing: ({ detail }) => detail != null && set(true),
    progress_text: ({ detail }) => runs && isOurs(detail.nodeId) && view.showProgress(detail.text),
    ...Object.fromEntries(ENDS.map((event) => [event, () => set(false)])) };
  whileUsed(node, () => {
    for (const [event, act] of Object.entries(events)) api.addEventListener(event, act);
    return () => {
      for (const [event, act] of Object.entries(events)) api.removeEventListener(event, act);
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
