/** What lies above the image: names, directions, crosshair, prompts, and a box being drawn. */

import { VIEWS } from "./layout.js";

const DIRECTIONS = {
  axial: { left: "R", right: "L", top: "A", bottom: "P" },
  coronal: { left: "R", right: "L", top: "S", bottom: "I" },
  sagittal: { left: "A", right: "P", top: "S", bottom: "I" },
};
const NEAR = 2; // slices within which a click still shows, faintly

export class Overlay {
  constructor(canvas, viewer) {
    this.canvas = canvas;
    this.viewer = viewer;
    this.band = null; // the box being drawn: {view, from, to}, places on the canvas
    this.corner = null; // first corner of a box by keyboard, a voxel in RAS order
    this.targets = []; // as in the server's state
    this.active = 1;
    this.pending = []; // clicks that the server has not answered: {ras, positive}
    viewer.addEventListener("drawn", () => this.draw());
  }

  draw() {
    const { canvas, viewer } = this;
    canvas.width = viewer.canvas.width;
    canvas.height = viewer.canvas.height;
    const context = canvas.getContext("2d");
    this.unit = (window.devicePixelRatio || 1) * 1;
    for (const place of viewer.places) {
      this._frame(context, place);
      if (place.view === "volume") continue;
      context.save();
      context.beginPath();
      context.rect(...place.rect);
      context.clip();
      this._crosshair(context, place.view);
      this._prompts(context, place.view);
      context.restore();
    }
    if (this.band) this._band(context);
  }

  _frame(context, { view, rect }) {
    const { unit } = this;
    const [left, top, width, height] = this._area(view);
    context.strokeStyle = "#333b45";
    context.lineWidth = unit;
    context.strokeRect(left + unit / 2, top + unit / 2, width - unit, height - unit);
    const isActive = view === this.viewer.plane && view !== this.viewer.layout;
    const count = view === "volume" ? "" : ` ${this._slice(view)}`;
    context.textBaseline = "top";
    context.textAlign = "left";
    const bold = isActive ? "600 " : "";
    this._text(context, VIEWS[view].name + count, left + 8 * unit, top + 7 * unit, bold);
    if (!DIRECTIONS[view]) return;
    const [l, t, w, h] = rect;
    const { left: west, right: east, top: north, bottom: south } = DIRECTIONS[view];
    context.textBaseline = "middle";
    this._text(context, west, Math.max(l, left) + 6 * unit, t + h / 2);
    context.textAlign = "right";
    this._text(context, east, Math.min(l + w, left + width) - 6 * unit, t + h / 2);
    context.textAlign = "center";
    this._text(context, north, l + w / 2, Math.max(t, top) + 12 * unit);
    this._text(context, south, l + w / 2, Math.min(t + h, top + height) - 12 * unit);
  }

  _text(context, text, x, y, style = "") {
    context.font = `${style}${12 * this.unit}px system-ui, sans-serif`;
    context.lineWidth = 3 * this.unit;
    context.strokeStyle = "#000c";
    context.fillStyle = "#e6e9ed";
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  }

  _slice(view) {
    const { axis } = VIEWS[view];
    return `${this.viewer.at[axis] + 1} / ${this.viewer.order.dims[axis]}`;
  }

  /** Return the part of the canvas that a view has: [left, top, width, height]. */
  _area(view) {
    const { width, height } = this.canvas;
    if (this.viewer.layout !== "four") return [0, 0, width, height];
    const right = view === "volume" || view === "sagittal";
    const below = view === "coronal" || view === "sagittal";
    return [right ? width / 2 : 0, below ? height / 2 : 0, width / 2, height / 2];
  }

  _crosshair(context, view) {
    const { unit, viewer } = this;
    const [x, y] = viewer.canvasPlace(view, viewer.fraction(viewer.at));
    const gap = 10 * unit;
    const { width, height } = this.canvas;
    context.lineWidth = unit;
    context.strokeStyle = view === viewer.plane ? "#ffd166cc" : "#ffd16680";
    line(context, 0, y, x - gap, y);
    line(context, x + gap, y, width, y);
    line(context, x, 0, x, y - gap);
    line(context, x, y + gap, x, height);
  }

  _prompts(context, view) {
    for (const { id, color, prompts } of this.targets) {
      if (id !== this.active) continue;
      for (const prompt of prompts) {
        if (prompt.type === "point") {
          const ras = this.viewer.order.toRas(prompt.at);
          this._click(context, view, ras, prompt.positive, color);
        } else if (prompt.type === "box") {
          this._box(context, view, prompt, color);
        }
      }
    }
    for (const { ras, positive } of this.pending) {
      this._click(context, view, ras, positive, "#ffffff");
    }
    if (this.corner) this._click(context, view, this.corner, true, "#ffd166");
  }

  _click(context, view, ras, positive, color) {
    const { axis } = VIEWS[view];
    const away = Math.abs(ras[axis] - this.viewer.at[axis]);
    if (away > NEAR) return;
    const [x, y] = this.viewer.canvasPlace(view, this.viewer.fraction(ras));
    const radius = 6.5 * this.unit;
    context.globalAlpha = away ? 0.35 : 1;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = "#000b";
    context.fill();
    context.lineWidth = 2 * this.unit;
    context.strokeStyle = color;
    context.stroke();
    context.strokeStyle = "#fff";
    const arm = radius * 0.5;
    line(context, x - arm, y, x + arm, y);
    if (positive) line(context, x, y - arm, x, y + arm);
    context.globalAlpha = 1;
  }

  _box(context, view, { from, to }, color) {
    const { axis } = VIEWS[view];
    const { order, at } = this.viewer;
    const [a, b] = [order.toRas(from), order.toRas(to)];
    const low = a.map((value, i) => Math.min(value, b[i]));
    const high = a.map((value, i) => Math.max(value, b[i]));
    if (at[axis] < low[axis] || at[axis] > high[axis]) return;
    const corner = (ras, shift) => ras.map((value, i) => (value + shift) / order.dims[i]);
    const first = this.viewer.canvasPlace(view, corner(low, 0));
    const last = this.viewer.canvasPlace(view, corner(high, 1));
    context.setLineDash([6 * this.unit, 4 * this.unit]);
    context.lineWidth = 1.5 * this.unit;
    context.strokeStyle = color;
    context.strokeRect(...rectangle(first, last));
    context.setLineDash([]);
  }

  _band(context) {
    const { from, to } = this.band;
    context.fillStyle = "#ffffff22";
    context.strokeStyle = "#ffffff";
    context.lineWidth = 1.5 * this.unit;
    const rect = rectangle(from, to);
    context.fillRect(...rect);
    context.strokeRect(...rect);
  }
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

function rectangle([x0, y0], [x1, y1]) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0)];
}
