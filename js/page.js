// What the widgets share: elements, the pack's style sheet, and looking at a node again and again.

import { app } from "../../scripts/app.js";

/** An element; `role` and other attributes that are no properties go into `attributes`. */
export function make(tag, { role, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (role) element.setAttribute("role", role);
  element.append(...children);
  return element;
}

export function addStyles() {
  const href = new URL("./videomemory.css", import.meta.url).href;
  if (!document.querySelector(`link[href="${href}"]`)) document.head.append(make("link", { rel: "stylesheet", href }));
}

const MARGIN = 10; // that the classic renderer leaves above and below a DOM widget
const PLACE_MS = 400; // until a panel is where its node is
const GONE_MS = 1000; // until what runs for a node that is gone ends
const running = new Map(); // what ends it -> the node that it runs for

/** A DOM widget of one height that is stored neither in the workflow nor in the prompt. */
export function addPanel(node, name, element, height) {
  element.classList.add("videomemory-panel");
  element.style.minHeight = `${height - 2 * MARGIN}px`; // Nodes 2.0 gives no height
  const widget = node.addDOMWidget(name, `videomemory_${name}`, element, {
    serialize: false, hideOnZoom: false, getMinHeight: () => height, getMaxHeight: () => height, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  const stop = (happened) => happened.stopPropagation(); // the canvas would move the node
  for (const event of ["pointerdown", "wheel"]) element.addEventListener(event, stop);
  element.addEventListener("keydown", (pressed) => {
    if (!pressed.ctrlKey && !pressed.metaKey) stop(pressed); // save, undo and copy are the editor's
  });
  element.dataset.panel = name;
  lookEvery(node, PLACE_MS, () => takePlace(node, element));
  return widget;
}

/** Nodes 2.0 goes on showing the panel of a node that undo or another workflow has replaced: put the new one there. */
function takePlace(node, element) {
  if (element.isConnected || node.graph !== app.canvas?.graph) return;
  document.querySelector(`[data-node-id="${node.id}"] [data-panel="${element.dataset.panel}"]`)?.replaceWith(element);
}

/** Make changes to nodes that the editor can undo and has in the file that it saves next. */
export function asOneStep(change) {
  app.canvas.emitBeforeChange();
  try {
    change();
  } finally {
    app.canvas.emitAfterChange(); // without it the editor would keep no step again
    app.graph.setDirtyCanvas(true, true);
  }
}

/** Call `look` every so often while the node is used: undo, links and other extensions change values silently. */
export function lookEvery(node, milliseconds, look) {
  whileUsed(node, () => {
    const timer = setInterval(look, milliseconds);
    return () => clearInterval(timer);
  });
  look();
}

/** Call `begin` now and whenever the node is added to a graph again, and what it returns when the node is gone. */
export function whileUsed(node, begin) {
  let end = null;
  const stop = () => {
    running.delete(stop);
    end?.();
    end = null;
  };
  const start = () => {
    end ??= begin();
    running.set(stop, node);
  };
  for (const [event, then] of Object.entries({ onAdded: start, onRemoved: stop })) {
    const before = node[event];
    node[event] = function happened(...rest) {
      then();
      return before?.apply(this, rest);
    };
  }
  start();
}

/** Nobody tells a node that was only made to be copied, or inside a subgraph when undo or another workflow replaces it. */
function stopWhatIsGone() {
  const root = app.rootGraph ?? app.graph;
  for (const [stop, { graph }] of running) {
    if (!graph || (graph !== root && root.subgraphs?.get(graph.id) !== graph)) stop();
  }
}

setInterval(stopWhatIsGone, GONE_MS);

/** The node's last output: the editor keeps those of nodes inside a subgraph under the subgraph's id. */
export function outputOf(node) {
  return app.nodeOutputs[node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : node.id];
}
