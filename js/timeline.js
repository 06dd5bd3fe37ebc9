// Timeline editor on Re-anchor Prompt Schedule. The node's text stays the only source of truth: the timeline reads it and
// writes it, and is stored nowhere.

import { app } from "../../scripts/app.js";
import { addPanel, addStyles, asOneStep, lookEvery } from "./page.js";
import { TimelineView } from "./timeline/view.js";

const NODE = "VideoMemoryPromptSchedule";
const FIELDS = { scenes: "scenes", identity: "identity", hero: "hero", reanchor_seconds: "reanchorS", clip_seconds: "clipS", film_seconds: "filmS" };
const HEIGHT = 240;
const LOOK_MS = 300;

app.registerExtension({
  name: "VideoMemory.Timeline",

  setup: addStyles,

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const widgetOf = (name) => node.widgets.find((widget) => widget.name === name);
    const view = new TimelineView(() => read(node, widgetOf), (text) => write(widgetOf("scenes"), text));
    addPanel(node, "timeline", view.element, HEIGHT);
    lookEvery(node, LOOK_MS, () => view.look());
  },
});

/** What the node says; `linked` is a sentence where a value comes over a link and cannot be known here. */
function read(node, widgetOf) {
  const state = Object.fromEntries(Object.entries(FIELDS).map(([name, field]) => [field, widgetOf(name)?.value ?? ""]));
  const linked = (node.inputs ?? []).find((input) => input.link != null && input.name in FIELDS);
  return { ...state, linked: linked ? `${linked.name} comes over a link: the timeline cannot show it.` : "" };
}

function write(widget, text) {
  asOneStep(() => {
    widget.value = text;
    widget.callback?.(text);
  });
}
