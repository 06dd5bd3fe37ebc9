// Orbit view on Spatial Memory Report: the place as it was when the node ran last. All of it is the node's own output.

import { app } from "../../scripts/app.js";
import { addPanel, addStyles, lookEvery, outputOf } from "./page.js";
import { OrbitView } from "./spatial/view.js";

const NODE = "VideoMemorySpatialReport";
const HEIGHT = 320;
const WIDTH = 420;
const LOOK_MS = 400;

app.registerExtension({
  name: "VideoMemory.Orbit",
  setup: addStyles,

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const view = new OrbitView();
    addPanel(node, "orbit", view.element, HEIGHT);
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);
    let shown = null;
    lookEvery(node, LOOK_MS, () => {
      const cloud = outputOf(node)?.videomemory_orbit?.[0];
      if (cloud === shown) return view.refresh();
      shown = cloud;
      view.show(cloud);
    });
  },
});
