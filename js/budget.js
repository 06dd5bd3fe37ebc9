// Budget panel on VRAM Budget Gate: what the film will need, before anything is queued. The server reads the headers of
// the model files for it (POST /videomemory/plan) and loads nothing.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { signatureOf } from "./budget/changes.js";
import { placesOf, quietPrompt, upTo } from "./budget/prompt.js";
import { BudgetView } from "./budget/view.js";
import { addPanel, addStyles, lookEvery, whileUsed } from "./page.js";

const NODE = "VideoMemoryBudgetGate";
const HEIGHT = 260;
const LOOK_MS = 700; // a graph that is being changed is asked about when it has rested for so long
const CARD_EVERY = 5; // looks
const MOVED_BYTES = 2 ** 28; // of the card, and the plan is another

app.registerExtension({
  name: "VideoMemory.Budget",
  setup: addStyles,

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const view = new BudgetView();
    addPanel(node, "budget", view.element, HEIGHT);
    let [seen, asked, looks, busy, isAnswered] = ["", "", 0, false, true];
    let [card, planned] = [null, null]; // now, and when the plan was made
    whenBack(node, () => { planned = null; });
    lookEvery(node, LOOK_MS, async () => {
      if (busy || document.hidden || !view.element.isConnected) return;
      busy = true;
      try {
        if (looks++ % CARD_EVERY === 0) {
          card = await showCard(view) ?? card;
          if (!isAnswered || hasMoved(card, planned)) asked = "";
        }
        const now = signatureOf(app.rootGraph ?? app.graph);
        if (now === seen && now !== asked) {
          [asked, planned] = [now, card];
          isAnswered = await showPlan(view, node);
        }
        seen = now;
      } finally {
        busy = false;
      }
    });
  },
});

/** Call `then` when somebody comes back to the page: a model may have been downloaded meanwhile. */
function whenBack(node, then) {
  whileUsed(node, () => {
    window.addEventListener("focus", then);
    document.addEventListener("visibilitychange", then);
    return () => {
      window.removeEventListener("focus", then);
      document.removeEventListener("visibilitychange", then);
    };
  });
}

/** Whether another program has taken or left the card since the plan; what a run takes for itself does not count. */
function hasMoved(card, planned) {
  if (!card || app.runningNodeId) return false;
  return !planned || ["free", "total"].some((name) => Math.abs(card[name] - planned[name]) > MOVED_BYTES);
}

/** Whether there was an answer. */
async function showPlan(view, node) {
  let places, body;
  try {
    const prompt = await quietPrompt();
    places = placesOf(node, prompt);
    body = JSON.stringify({ prompt: upTo(places[0], prompt), node_id: places[0] });
  } catch (error) {
    view.showNothing(`The editor can make no prompt of this graph: ${error.message}`);
    return true;
  }
  if (!places.length) {
    view.showNothing("This node will not run: it is muted, or something before it is missing.");
    return true;
  }
  const answer = await api.fetchApi("/videomemory/plan", { method: "POST", headers: { "Content-Type": "application/json" }, body }).catch(() => null);
  const plan = await answer?.json().catch(() => null);
  if (plan?.fits === undefined) view.showNothing("The server does not answer: the plan is made when the film is queued.");
  else view.showPlan(plan, places.length);
  return plan?.fits !== undefined;
}

async function showCard(view) {
  const answer = await api.fetchApi("/videomemory/vram").catch(() => null);
  if (!answer?.ok) return null;
  const { card } = await answer.json();
  view.showCard(card);
  return card;
}
