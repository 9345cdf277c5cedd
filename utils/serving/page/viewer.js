/**
 * The image on the canvas: NiiVue, its tiles, the crosshair, zoom and grey levels.
 *
 * NiiVue draws; gestures, crosshair and marks are the page's own (`gestures.js`, `overlay.js`).
 * Voxels are [x, y, z] in RAS order (`voxels.js`), canvas coordinates are device pixels.
 * The event "drawn" follows every drawing, "moved" every move of the crosshair.
 */

import { Niivue } from "./vendor/niivue.js";
import { PLANES, VIEWS, customLayout, tilesOf } from "./layout.js";
import { VoxelOrder } from "./voxels.js";

const OPTIONS = {
  interactive: false,
  dragAndDropEnabled: false,
  isResizeCanvas: false,
  crosshairWidth: 0,
  isOrientationTextVisible: false,
  isRadiologicalConvention: true,
  sagittalNoseLeft: true,
  loadingText: "",
  logLevel: "error",
};
const MOST_ZOOM = 16;
const VOLUME_PAUSE_MS = 80; // between new masks on the planes and in the volume
const MOST_TEXTURE_BYTES = 2 ** 31; // of four bytes a voxel; browsers refuse more

export class Viewer extends EventTarget {
  /**
   * @param canvas NiiVue draws on it.
   * @param still a 2D canvas above it, which shows the last volume while slices are followed.
   */
  constructor(canvas, still) {
    super();
    this.canvas = canvas;
    this.still = still;
    this.layout = "four";
    this.plane = "axial"; // which the keyboard moves in
    this.order = null; // VoxelOrder of the image; null: there is none
    this.at = [0, 0, 0]; // the crosshair's voxel
    this._places = [];
  }

  /** Start WebGL. Throws an Error with a text for the user where there is none. */
  async start() {
    const context = this.canvas.getContext("webgl2", { alpha: true, antialias: false });
    if (!context) {
      throw new Error(
        "This browser offers no WebGL 2, which draws the image. Turn on hardware acceleration in " +
          "its settings, or use another browser.",
      );
    }
    this.nv = new Niivue(OPTIONS);
    await this.nv.attachToCanvas(this.canvas, false);
    this.canvas.addEventListener("webglcontextlost", () => this.dispatchEvent(new Event("lost")));
    new ResizeObserver(() => this.resize()).observe(this.canvas.parentElement);
    this.resize();
  }

  /**
   * Show the image of a NIfTI file (ArrayBuffer). Throws an Error where it is too large.
   *
   * @param range {low, high}, the values shown black and white; null: those that NiiVue finds.
   */
  async show(buffer, image, range = null) {
    this.requireSize(image);
    const { nv } = this;
    this.clear();
    const grey = range ? { cal_min: range.low, cal_max: range.high } : {};
    await nv.loadVolumes([{ url: buffer, name: "image.nii", colormap: "gray", ...grey }]);
    if (nv.gl.getError() === nv.gl.OUT_OF_MEMORY) {
      this.clear();
      throw new Error("The memory of the graphics card is too small for this image.");
    }
    const volume = nv.volumes[0];
    this.order = new VoxelOrder(volume.permRAS, volume.dimsRAS.slice(1, 4));
    this.at = this.order.dims.map((n) => Math.floor(n / 2));
    this.resetView();
  }

  /** Throw an Error if an image is too large to be drawn. */
  requireSize({ shape_zyx: shape }) {
    const longest = this.nv.uiData.max3D;
    const bytes = 4 * shape.reduce((product, n) => product * n, 1);
    const size = [...shape].reverse().join(" × ");
    if (Math.max(...shape) > longest) {
      throw new Error(
        `The image has ${size} voxels; this browser draws up to ${longest} along an axis. ` +
          "Crop it or lower its resolution.",
      );
    }
    if (bytes > MOST_TEXTURE_BYTES) {
      const most = Math.round(MOST_TEXTURE_BYTES / 4e6);
      throw new Error(
        `The image has ${size} voxels; browsers draw up to ${most} million. ` +
          "Crop it or lower its resolution.",
      );
    }
  }

  /** Show no image. */
  clear() {
    this.nv.volumes = [];
    this.nv.drawBitmap = null;
    this.order = null;
    this.draw();
  }

  /** Return the image's value at a voxel. */
  valueAt(ras) {
    return this.nv.volumes[0].getValue(...ras);
  }

  /** Show values from `low` (black) to `high` (white). */
  setWindow(low, high) {
    const volume = this.nv.volumes[0];
    if (!volume || (volume.cal_min === low && volume.cal_max === high)) return;
    volume.cal_min = low;
    volume.cal_max = Math.max(high, low + 1e-6);
    this._windowed = true;
    this.draw();
  }

  get window() {
    const volume = this.nv.volumes[0];
    return volume ? { low: volume.cal_min, high: volume.cal_max } : null;
  }

  setLayout(layout) {
    this.layout = layout;
    if (PLANES.includes(layout)) this.plane = layout;
    this.draw();
  }

  setPlane(plane) {
    if (PLANES.includes(this.layout)) this.layout = plane;
    this.usePlane(plane);
    this.draw();
  }

  /** Let the keyboard move in a plane. */
  usePlane(plane) {
    this.plane = plane;
    this.dispatchEvent(new Event("moved"));
  }

  /** Move the crosshair to a voxel; it stays within the image. */
  moveTo(ras) {
    if (!this.order) return;
    this.at = ras.map((index, axis) => clamp(index, 0, this.order.dims[axis] - 1));
    this.nv.scene.crosshairPos = Float32Array.from(this.fraction(this.at));
    this.dispatchEvent(new Event("moved"));
    this.draw({ volume: "no" });
  }

  /** Move by voxels along the screen's right and up, and through the slices, of a plane. */
  moveBy(right, up, through, plane = this.plane) {
    const { axis, right: rightAxis, up: upAxis } = VIEWS[plane];
    const ras = [...this.at];
    ras[rightAxis] -= right; // the patient's right, and front, are on the screen's left
    ras[upAxis] += up;
    ras[axis] += through;
    this.moveTo(ras);
  }

  /** Magnify by a factor; the place of the fraction stays where it is. */
  zoomBy(factor, fraction = this.fraction(this.at)) {
    if (!this.order) return;
    const pan = this.nv.scene.pan2Dxyzmm;
    const zoom = clamp(pan[3] * factor, 1, MOST_ZOOM);
    const mm = this.nv.frac2mm(fraction);
    for (let axis = 0; axis < 3; axis++) {
      pan[axis] = zoom === 1 ? 0 : pan[axis] + mm[axis] * (pan[3] - zoom);
    }
    pan[3] = zoom;
    this.draw({ volume: "no" });
  }

  /** Shift the planes, so that what was at one fraction appears at the other. */
  panBy(fromFraction, toFraction) {
    const pan = this.nv.scene.pan2Dxyzmm;
    const [from, to] = [fromFraction, toFraction].map((fraction) => this.nv.frac2mm(fraction));
    for (let axis = 0; axis < 3; axis++) pan[axis] += (to[axis] - from[axis]) * pan[3];
    this.draw({ volume: "no" });
  }

  /** Turn the volume by degrees. */
  turnBy(azimuth, elevation) {
    const { scene } = this.nv;
    scene.renderAzimuth = (scene.renderAzimuth + azimuth) % 360;
    scene.renderElevation = clamp(scene.renderElevation + elevation, -90, 90);
    this.draw();
  }

  zoomVolumeBy(factor) {
    const { scene } = this.nv;
    scene.volScaleMultiplier = clamp(scene.volScaleMultiplier * factor, 0.5, 4);
    this.draw();
  }

  /** Undo zoom, shift and turn. */
  resetView() {
    const { scene } = this.nv;
    scene.pan2Dxyzmm = [0, 0, 0, 1];
    scene.renderAzimuth = 160;
    scene.renderElevation = 15;
    scene.volScaleMultiplier = 1;
    this.moveTo(this.at);
    this.draw();
  }

  /** Return the fraction, 0 to 1 along each axis, of a voxel's centre. */
  fraction(ras) {
    return ras.map((index, axis) => (index + 0.5) / this.order.dims[axis]);
  }

  /** Return what lies at a place of the canvas: `{view, fraction, ras}`; null: no image there. */
  hit(x, y) {
    const place = this._places.find(({ rect: [left, top, width, height] }) => {
      return x >= left && y >= top && x < left + width && y < top + height;
    });
    if (!place) return null;
    if (place.view === "volume") return { view: "volume" };
    const fraction = this._fractionIn(place, x, y);
    if (fraction.some((f) => f < 0 || f >= 1)) return null;
    return { view: place.view, fraction, ras: this._voxel(fraction) };
  }

  /** Return the fraction at a place of the canvas, in the view's slice; it may be outside. */
  fractionAt(view, x, y) {
    const place = this._places.find((each) => each.view === view);
    return place && this._fractionIn(place, x, y);
  }

  /** Return the nearest voxel of a view's slice at a place of the canvas. */
  voxelAt(view, x, y) {
    return this._voxel(this.fractionAt(view, x, y));
  }

  /** Return the place on the canvas of a fraction, in a view's plane. */
  canvasPlace(view, fraction) {
    const place = this._places.find((each) => each.view === view);
    if (!place) return null;
    const { right, up } = VIEWS[view];
    const [left, top, width, height] = place.rect;
    const share = (axis) =>
      (fraction[axis] - place.first[axis]) / (place.last[axis] - place.first[axis]);
    return [left + share(right) * width, top + share(up) * height];
  }

  /** Return the views on the canvas: `{view, rect}`, [left, top, width, height]. */
  get places() {
    return this._places;
  }

  /** Fit the canvas to its place on the page. */
  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas.parentElement;
    const size = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
    for (const canvas of [this.canvas, this.still]) [canvas.width, canvas.height] = size;
    this.draw();
  }

  /**
   * Draw before the next frame. The volume takes long on some machines: `volume` "no" leaves it as
   * it was, "soon" draws it a little later than the planes.
   */
  draw({ volume = "now" } = {}) {
    this._wantsVolume = this._wantsVolume || volume === "now";
    if (volume === "soon") {
      clearTimeout(this._volumeTimer);
      this._volumeTimer = setTimeout(() => this.draw(), VOLUME_PAUSE_MS);
    }
    if (this._frame) return;
    this._frame = requestAnimationFrame(() => {
      this._frame = 0;
      const withVolume = this._wantsVolume || this.layout === "volume";
      this._wantsVolume = false;
      this._drawNow(withVolume);
    });
  }

  _drawNow(withVolume) {
    const { nv } = this;
    if (!this.order) {
      this._drawNothing();
      return;
    }
    const tiles = tilesOf(this.layout);
    nv.customLayout = customLayout(tiles.filter(({ view }) => withVolume || view !== "volume"));
    if (this._windowed) {
      this._windowed = false;
      nv.updateGLVolume(); // applies the grey levels, and draws
    } else {
      nv.drawScene();
    }
    this._measure();
    const volume = tiles.find(({ view }) => view === "volume");
    this._keepStill(volume, withVolume);
    this.dispatchEvent(new Event("drawn"));
  }

  _drawNothing() {
    this.nv.customLayout = customLayout(tilesOf("axial")); // quick, for NiiVue while it loads
    if (!this.nv.volumes.length) this.nv.drawScene();
    this.still.getContext("2d").clearRect(0, 0, this.still.width, this.still.height);
    this._places = [];
    this.dispatchEvent(new Event("drawn"));
  }

  /** Copy the drawn volume to the canvas above, where it stays while only planes are drawn. */
  _keepStill(tile, isDrawn) {
    const { width, height } = this.still;
    const part = tile && [tile.left * width, tile.top * height].concat([
      tile.width * width,
      tile.height * height,
    ]);
    if (tile && !isDrawn) {
      this._places.push({ view: "volume", rect: part });
      return;
    }
    const context = this.still.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (tile && this.layout !== "volume") context.drawImage(this.canvas, ...part, ...part);
  }

  /** Note where NiiVue drew each plane, and the fractions at its corners. */
  _measure() {
    const views = Object.keys(VIEWS);
    this._places = this.nv.screenSlices.map((slice, index) => {
      const view = views.find((name) => VIEWS[name].type === slice.axCorSag);
      const [l, t, w, h] = slice.leftTopWidthHeight;
      const rect = [Math.min(l, l + w), t, Math.abs(w), h];
      if (view === "volume") return { view, rect };
      const corner = (x, y) => [...this.nv.screenXY2TextureFrac(x, y, index, false)];
      const first = corner(rect[0], rect[1]);
      const last = corner(rect[0] + rect[2], rect[1] + rect[3]);
      return { view, rect, first, last };
    });
  }

  _fractionIn({ view, rect, first, last }, x, y) {
    const { axis, right, up } = VIEWS[view];
    const fraction = [0, 0, 0];
    fraction[right] = mix(first[right], last[right], (x - rect[0]) / rect[2]);
    fraction[up] = mix(first[up], last[up], (y - rect[1]) / rect[3]);
    fraction[axis] = this.fraction(this.at)[axis];
    return fraction;
  }

  _voxel(fraction) {
    return fraction.map((f, axis) => {
      const n = this.order.dims[axis];
      return clamp(Math.floor(f * n), 0, n - 1);
    });
  }
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

function mix(first, last, share) {
  return first + (last - first) * share;
}
