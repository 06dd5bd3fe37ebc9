// Memory strip on Memory Report: what the memory held when the node ran last, chunk by chunk. All of it is the node's own
// output; nothing is asked of the server but the pictures.

import { app } from "../../scripts/app.js";
import { MemoryView } from "./memory/view.js";
import { addPanel, addStyles, lookEvery, outputOf } from "./page.js";

const NODE = "VideoMemoryMemoryReport";
const HEIGHT = 264;
const WIDTH = 420; // of a new node: three chunks side by side
const LOOK_MS = 400;

app.registerExtension({
  name: "VideoMemory.MemoryStrip",
  setup: addStyles,

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const view = new MemoryView();
    addPanel(node, "memory_strip", view.element, HEIGHT);
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);
    let shown = null;
    lookEvery(node, LOOK_MS, () => {
      const strip = outputOf(node)?.videomemory_strip?.[0];
      if (strip === shown) return;
      shown = strip;
      view.show(strip);
    });
  },
});
