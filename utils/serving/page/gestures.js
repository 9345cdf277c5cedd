/**
 * Mouse, pen and fingers on the image.
 *
 * Left click: inside of the target; right click, or with Shift or Ctrl: outside. Dragging draws a
 * box, in mode "move" it moves the crosshair. Wheel: slices, with Ctrl: zoom. Middle button or Alt:
 * shift. Dragging with the right button: grey levels. Two fingers: shift and zoom.
 */

const STILL_PX = 5; // moves up to this are no dragging
const TWICE_MS = 400; // a second click on the same voxel within this is a double click
const LINE_PX = 16;
const SLICE_PX = 40; // of the wheel, for touch pads, which send many small steps

export class Gestures extends EventTarget {
  /**
   * Events: "click" {ras, positive}, "box" {from, to} (RAS, both inside), "window" {level, width}
   * (shares of the present ones to add), "hover" {ras} or null.
   */
  constructor(surface, viewer, overlay) {
    super();
    this.surface = surface;
    this.viewer = viewer;
    this.overlay = overlay;
    this.mode = "inside"; // or "outside", "move"
    this._pointers = new Map();
    this._gesture = null;
    this._wheel = 0;
    const on = (type, handler) => surface.addEventListener(type, handler.bind(this));
    on("pointerdown", this._down);
    on("pointermove", this._move);
    on("pointerup", this._up);
    on("pointercancel", this.cancel);
    on("pointerleave", () => this._tell("hover", null));
    on("contextmenu", (event) => event.preventDefault());
    surface.addEventListener("wheel", (event) => this._scroll(event), { passive: false });
  }

  /** Stop what is being drawn or dragged. */
  cancel() {
    this._gesture = null;
    this._pointers.clear();
    this.overlay.band = null;
    this.overlay.corner = null;
    this.viewer.draw({ volume: "no" });
  }

  _down(event) {
    this.surface.focus({ preventScroll: true });
    if (!this.viewer.order) return;
    this.surface.setPointerCapture(event.pointerId);
    const place = this._place(event);
    this._pointers.set(event.pointerId, place);
    if (this._pointers.size === 2) {
      this.overlay.band = null;
      this._gesture = { kind: "pinch", last: this._pinch() };
      return;
    }
    const hit = this.viewer.hit(...place);
    if (!hit) return;
    if (hit.view !== "volume") this.viewer.usePlane(hit.view);
    const kind = hit.view === "volume" ? "turn" : "press";
    const { button, altKey } = event;
    const outside = button === 2 || event.shiftKey || event.ctrlKey || this.mode === "outside";
    this._gesture = { kind, hit, button, altKey, positive: !outside, start: place, last: place };
  }

  _move(event) {
    const place = this._place(event);
    if (this._pointers.has(event.pointerId)) this._pointers.set(event.pointerId, place);
    const gesture = this._gesture;
    if (!gesture) {
      const hit = this.viewer.order && this.viewer.hit(...place);
      this._tell("hover", hit?.ras ? { ras: hit.ras } : null);
      return;
    }
    if (gesture.kind === "pinch") {
      this._pinchMove(gesture);
      return;
    }
    if (gesture.kind === "press") {
      if (distance(place, gesture.start) <= STILL_PX * this._ratio) return;
      gesture.kind = this._dragKind(gesture);
    }
    this._drag(gesture, place);
    gesture.last = place;
  }

  _dragKind({ button, altKey }) {
    if (button === 1 || altKey) return "pan";
    if (button === 2) return "window";
    return this.mode === "move" ? "follow" : "box";
  }

  _drag(gesture, place) {
    const { viewer } = this;
    const { kind, hit, last } = gesture;
    const [dx, dy] = [place[0] - last[0], place[1] - last[1]];
    if (kind === "turn") {
      viewer.turnBy((-dx / this._ratio) * 0.6, (dy / this._ratio) * 0.6);
    } else if (kind === "pan") {
      viewer.panBy(viewer.fractionAt(hit.view, ...last), viewer.fractionAt(hit.view, ...place));
    } else if (kind === "follow") {
      viewer.moveTo(viewer.voxelAt(hit.view, ...place));
    } else if (kind === "window") {
      this._tell("window", { level: dy / 400 / this._ratio, width: dx / 200 / this._ratio });
    } else if (kind === "box") {
      this.overlay.band = { view: hit.view, from: gesture.start, to: place };
      this.overlay.draw();
    }
  }

  _up(event) {
    const place = this._place(event);
    this._pointers.delete(event.pointerId);
    const gesture = this._gesture;
    this._gesture = null;
    if (!gesture || gesture.kind === "pinch") return;
    if (gesture.kind === "box") {
      this.overlay.band = null;
      const { view } = gesture.hit;
      const from = this.viewer.voxelAt(view, ...gesture.start);
      this._tell("box", { from, to: this.viewer.voxelAt(view, ...place) });
      this.viewer.draw({ volume: "no" });
    } else if (gesture.kind === "press" && gesture.button !== 1) {
      this._click(gesture, event.timeStamp);
    }
  }

  _click({ hit: { ras }, positive }, time) {
    this.viewer.moveTo(ras);
    if (this.mode === "move") return;
    const twice = this._last && time - this._last.time < TWICE_MS;
    const key = `${ras} ${positive}`;
    const isSame = twice && this._last.key === key;
    this._last = { key, time };
    if (!isSame) this._tell("click", { ras, positive });
  }

  _scroll(event) {
    if (!this.viewer.order) return;
    const hit = this.viewer.hit(...this._place(event));
    if (!hit) return;
    event.preventDefault();
    const delta = event.deltaY * (event.deltaMode ? LINE_PX : 1);
    if (hit.view === "volume") {
      this.viewer.zoomVolumeBy(Math.exp(-delta / 500));
    } else if (event.ctrlKey || event.metaKey) {
      this.viewer.zoomBy(Math.exp(-delta / 300), hit.fraction);
    } else {
      this._wheel += Math.abs(delta) >= 100 ? Math.sign(delta) * SLICE_PX : delta;
      const slices = Math.trunc(this._wheel / SLICE_PX);
      this._wheel -= slices * SLICE_PX;
      if (slices) this.viewer.moveBy(0, 0, -slices, hit.view);
    }
  }

  _pinch() {
    const [a, b] = [...this._pointers.values()];
    return { centre: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], size: distance(a, b) };
  }

  _pinchMove(gesture) {
    if (this._pointers.size < 2) return;
    const { viewer } = this;
    const [now, before] = [this._pinch(), gesture.last];
    gesture.last = now;
    const hit = viewer.hit(...before.centre);
    if (!hit) return;
    const factor = now.size / Math.max(1, before.size);
    if (hit.view === "volume") {
      viewer.zoomVolumeBy(factor);
      return;
    }
    viewer.zoomBy(factor, hit.fraction);
    viewer.panBy(hit.fraction, viewer.fractionAt(hit.view, ...now.centre));
  }

  /** Return the place of an event on the canvas, in device pixels. */
  _place(event) {
    const { left, top } = this.surface.getBoundingClientRect();
    return [(event.clientX - left) * this._ratio, (event.clientY - top) * this._ratio];
  }

  get _ratio() {
    return window.devicePixelRatio || 1;
  }

  _tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function distance(a, b) {
  return Math.hypot(a[0] - b[0], a[1] - b[1]);
}
