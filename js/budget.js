// Budget panel on VRAM Budget Gate: what the film will need, before anything is queued. The server reads the headers of
// the model files for it (POST /videomemory/plan) and loads nothing.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { signatureOf } from "./budget/changes.js";
import { BudgetView } from "./budget/view.js";
import { addPanel, addStyles, lookEvery } from "./page.js";

const NODE = "VideoMemoryBudgetGate";
const HEIGHT = 260;
const LOOK_MS = 700; // a graph that is being changed is asked about when it has rested for so long
const CARD_EVERY = 5; // looks

app.registerExtension({
  name: "VideoMemory.Budget",
  setup: addStyles,

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const view = new BudgetView();
    addPanel(node, "budget", view.element, HEIGHT);
    let [seen, asked, looks, busy] = ["", "", 0, false];
    lookEvery(node, LOOK_MS, async () => {
      if (busy || document.hidden || !view.element.isConnected) return;
      busy = true;
      try {
        if (looks++ % CARD_EVERY === 0) await showCard(view);
        const now = signatureOf(app.rootGraph ?? app.graph);
        if (now === seen && now !== asked) {
          asked = now;
          await showPlan(view, await graphOf(node));
        }
        seen = now;
      } finally {
        busy = false;
      }
    });
  },
});

/** {prompt, node_id} as the server wants them; node_id is null where the node would not run (muted, in a template). */
async function graphOf(node) {
  try {
    const { output } = await app.graphToPrompt();
    const gates = Object.keys(output).filter((id) => output[id].class_type === NODE);
    return { prompt: output, node_id: gates.find((id) => id === String(node.id) || id.endsWith(`:${node.id}`)) ?? null };
  } catch {
    return { prompt: {}, node_id: null };
  }
}

async function showPlan(view, graph) {
  if (graph.node_id === null) return view.showNothing("This node will not run: it is muted, or something before it is missing.");
  const answer = await api.fetchApi("/videomemory/plan", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(graph) }).catch(() => null);
  if (!answer?.ok) return view.showNothing("The server does not answer: the plan is made when the film is queued.");
  return view.showPlan(await answer.json());
}

async function showCard(view) {
  const answer = await api.fetchApi("/videomemory/vram").catch(() => null);
  if (answer?.ok) view.showCard((await answer.json()).card);
}
