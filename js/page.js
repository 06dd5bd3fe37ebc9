// What the widgets share: elements, the pack's style sheet, and looking at a node again and again.

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

/** A DOM widget of one height that is stored neither in the workflow nor in the prompt. */
export function addPanel(node, name, element, height) {
  element.classList.add("videomemory-panel");
  element.style.minHeight = `${height - 2 * MARGIN}px`; // Nodes 2.0 gives no height
  const widget = node.addDOMWidget(name, `videomemory_${name}`, element, {
    serialize: false, hideOnZoom: false, getMinHeight: () => height, getMaxHeight: () => height, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  for (const event of ["pointerdown", "wheel", "keydown"]) {
    element.addEventListener(event, (happened) => happened.stopPropagation()); // the canvas would move the node
  }
  return widget;
}

/** Call `look` every so often until the node is removed: undo, links and other extensions change values silently. */
export function lookEvery(node, milliseconds, look) {
  const timer = setInterval(look, milliseconds);
  const { onRemoved } = node;
  node.onRemoved = function removed(...rest) {
    clearInterval(timer);
    return onRemoved?.apply(this, rest);
  };
  look();
}
