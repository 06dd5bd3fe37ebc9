// A cloud of points to turn and look at: drawn with a depth buffer into a 2D canvas, by pointer and by keys.

import { make } from "../page.js";

const NOTHING = "Run the workflow: then the place can be turned and looked at here.";
const SIDES = { front: [0, 0], right: [90, 0], above: [0, 90] }; // [turned, tilted] in degrees
const STEP = 10; // degrees per key
const STEPS = { nearer: 1.25, farther: 0.8 }; // times the zoom, per key or button
const [NEAREST, FARTHEST] = [0.25, 8]; // zoom
const LARGEST = 16; // pixels of a point
const AWAY = 1.8; // the camera from the middle, in reaches of the cloud
const LENS = 1.1; // focal length over the canvas' smaller side, as the node's pictures
const KEYS = "Arrow keys turn it, + and - bring it nearer or move it away, Home goes back to the front.";

export class OrbitView {
  constructor() {
    this.canvas = make("canvas", { className: "videomemory-cloud", tabIndex: 0, role: "img" });
    this.status = make("p", { role: "status" });
    this.sides = Object.keys(SIDES).map((side) => button(side, () => this.look(side)));
    this.steps = Object.entries(STEPS).map(([name, times]) => button(name, () => this.approach(times))); // for fingers
    const row = make("div", { className: "videomemory-row", role: "group", ariaLabel: "Where to look from" }, ...this.sides, ...this.steps);
    this.element = make("div", { className: "videomemory-orbit" }, this.status, this.canvas, row);
    this.listen();
    this.show(undefined);
  }

  listen() {
    const { canvas } = this;
    this.followPointer();
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.approach(Math.exp(-event.deltaY / 500));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const act = {
        ArrowLeft: () => this.turn(-STEP, 0), ArrowRight: () => this.turn(STEP, 0), ArrowUp: () => this.turn(0, -STEP),
        ArrowDown: () => this.turn(0, STEP), "+": () => this.approach(STEPS.nearer), "=": () => this.approach(STEPS.nearer),
        "-": () => this.approach(STEPS.farther), Home: () => this.look("front"),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** One pointer turns it. A second finger ends that: a pinch is the editor's, which zooms the graph. */
  followPointer() {
    const { canvas } = this;
    let turning = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      turning = event.isPrimary ? event.pointerId : null;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId === turning) this.turn(event.movementX / 2, event.movementY / 2);
    });
    canvas.addEventListener("lostpointercapture", () => { turning = null; });
  }

  /** The node's output as spatial/orbit.py makes it, or undefined. */
  show(cloud) {
    this.cloud = cloud;
    this.points = cloud ? new Int16Array(bytes(cloud.points).buffer) : new Int16Array();
    this.colours = cloud ? pixelsOf(bytes(cloud.colours)) : new Uint32Array();
    for (const control of [...this.sides, ...this.steps]) control.disabled = !cloud;
    this.look("front");
  }

  look(side) {
    [this.turned, this.tilted] = SIDES[side];
    this.zoom = 1;
    this.changed();
  }

  /** Drag to the right: the camera goes to the left around the place. */
  turn(right, down) {
    this.turned = ((this.turned + right + 540) % 360) - 180;
    this.tilted = Math.min(90, Math.max(-90, this.tilted + down));
    this.changed();
  }

  approach(times) {
    this.zoom = Math.min(FARTHEST, Math.max(NEAREST, this.zoom * times));
    this.changed();
  }

  changed() {
    const words = this.words();
    this.status.textContent = words;
    this.canvas.ariaLabel = this.cloud ? `${words} ${KEYS}` : words;
    for (const side of this.sides) {
      const [turned, tilted] = SIDES[side.textContent];
      side.ariaPressed = String(Boolean(this.cloud) && turned === this.turned && tilted === this.tilted);
    }
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  words() {
    if (!this.cloud) return NOTHING;
    const { shown, total } = this.cloud;
    const count = shown < total ? `${shown.toLocaleString("en")} of ${total.toLocaleString("en")} points` : `${total.toLocaleString("en")} points`;
    return `${count}, turned ${Math.round(this.turned)}°, tilted ${Math.round(this.tilted)}°, ${this.zoom.toFixed(1)}x.`;
  }

  draw() {
    const { canvas } = this;
    [canvas.width, canvas.height] = [canvas.clientWidth, canvas.clientHeight]; // empties it too
    if (!this.cloud || !canvas.width || !canvas.height) return;
    // in RAM: every picture is put there whole, and Chromium loses it when a canvas of the card is read back
    const context = canvas.getContext("2d", { willReadFrequently: true }), image = context.createImageData(canvas.width, canvas.height);
    this.ink = getComputedStyle(canvas).color;
    const project = this.projection(canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer), nearest = new Float32Array(pixels.length).fill(Infinity);
    const { scale } = this.cloud, { points, colours } = this;
    for (let i = 0; i < colours.length; i++) {
      const [u, v, depth, size] = project(points[3 * i] * scale, points[3 * i + 1] * scale, points[3 * i + 2] * scale);
      if (depth > 0) fill(image, pixels, nearest, Math.round(u), Math.round(v), size, depth, colours[i]);
    }
    context.putImageData(image, 0, 0);
    this.drawCamera(context, project);
  }

  /** After another theme the first camera is drawn in its colour. */
  refresh() {
    if (this.ink && this.ink !== getComputedStyle(this.canvas).color) this.draw();
  }

  /** World offset from the middle -> [u, v, depth, size of the point in pixels]. */
  projection(width, height) {
    const [yaw, pitch] = [this.turned, this.tilted].map((degrees) => (degrees * Math.PI) / 180);
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    const { reach, shown } = this.cloud, focal = LENS * Math.min(width, height) * this.zoom;
    const apart = (2 * reach) / Math.sqrt(shown); // of neighbours on a surface as wide as the cloud
    return (x, y, z) => {
      const side = cy * x + sy * z, ahead = cy * z - sy * x;
      const down = cp * y - sp * ahead, depth = cp * ahead + sp * y + AWAY * reach;
      return [width / 2 + (focal * side) / depth, height / 2 + (focal * down) / depth, depth,
        Math.min(LARGEST, Math.max(2, Math.round((focal * apart) / depth)))];
    };
  }

  /** The first camera: it stands at the world's origin and looks along z. */
  drawCamera(context, project) {
    const { middle, reach } = this.cloud, size = 0.12 * reach;
    const at = (x, y, z) => project(x * size - middle[0], y * size - middle[1], z * size - middle[2]);
    const eye = at(0, 0, 0), corners = [at(-1, -0.6, 1.5), at(1, -0.6, 1.5), at(1, 0.6, 1.5), at(-1, 0.6, 1.5)];
    if ([eye, ...corners].some(([, , depth]) => depth <= 0)) return;
    context.strokeStyle = this.ink;
    context.lineWidth = 1.5;
    context.beginPath();
    corners.forEach((corner, i) => {
      const next = corners[(i + 1) % 4];
      context.moveTo(eye[0], eye[1]);
      context.lineTo(corner[0], corner[1]);
      context.lineTo(next[0], next[1]);
    });
    context.stroke();
  }
}

function button(textContent, onclick) {
  return make("button", { type: "button", textContent, onclick });
}

/** A square around (u, v) where nothing nearer is drawn yet. */
function fill({ width, height }, pixels, nearest, u, v, size, depth, colour) {
  const left = u - (size >> 1), top = v - (size >> 1);
  for (let y = Math.max(0, top); y < Math.min(height, top + size); y++) {
    for (let x = Math.max(0, left); x < Math.min(width, left + size); x++) {
      const pixel = y * width + x;
      if (depth >= nearest[pixel]) continue;
      nearest[pixel] = depth;
      pixels[pixel] = colour;
    }
  }
}

/** Red, green, blue by byte -> opaque pixels as a canvas holds them. */
function pixelsOf(colours) {
  const out = new Uint8Array((colours.length / 3) * 4).fill(255);
  colours.forEach((value, at) => { out[Math.floor(at / 3) * 4 + (at % 3)] = value; });
  return new Uint32Array(out.buffer);
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
