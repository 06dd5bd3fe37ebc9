// The graph as a prompt for its plan alone: nothing in it is done, kept or sent that only a run needs.

import { app } from "../../../scripts/app.js";

let last = Promise.resolve();

/** What app.graphToPrompt makes of the graph. One at a time: two would give back each other's quiet widgets. */
export function quietPrompt() {
  last = last.catch(() => {}).then(async () => {
    const restore = [];
    try {
      for (const widget of allWidgets()) restore.push(quieten(widget));
      return (await app.graphToPrompt()).output;
    } finally {
      for (const back of restore) back();
    }
  });
  return last;
}

function allWidgets() {
  const root = app.rootGraph ?? app.graph;
  const nodes = [root, ...(root.subgraphs?.values() ?? [])].flatMap((graph) => graph.nodes);
  return nodes.filter((node) => !node.subgraph).flatMap((node) => (node.widgets ?? []).filter((widget) => widget.serializeValue));
}

/** serializeValue may stop a recording, take a picture or upload one: say the value as it is. Returns what undoes it. */
function quieten(widget) {
  const [own, before, plain] = [Object.hasOwn(widget, "serializeValue"), widget.serializeValue, () => widget.value];
  widget.serializeValue = plain;
  return () => {
    if (widget.serializeValue !== plain) return; // somebody has set another one meanwhile
    if (own) widget.serializeValue = before;
    else delete widget.serializeValue; // its class has one
  };
}

/** The ids under which a node would run: one for each place of the subgraph that it is in, none where it is muted. */
export function placesOf(node, prompt) {
  return pathsTo(node, app.rootGraph ?? app.graph).filter((id) => id in prompt);
}

function pathsTo(node, graph, path = []) {
  if (graph === node.graph) return [[...path, node.id].join(":")];
  return graph.nodes.filter((one) => one.subgraph).flatMap((one) => pathsTo(node, one.subgraph, [...path, one.id]));
}

/** A node of a prompt and all that lies before it: a plan needs no more. */
export function upTo(id, prompt) {
  const found = {};
  for (const ids = [id]; ids.length; ) {
    const next = ids.pop();
    if (next in found || !(next in prompt)) continue;
    found[next] = prompt[next];
    for (const value of Object.values(prompt[next].inputs)) if (Array.isArray(value)) ids.push(String(value[0]));
  }
  return found;
}
