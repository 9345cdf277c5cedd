/** The controls of the view: layout, slice, grey levels, opacity. */

import { VIEWS } from "./layout.js";
import { levelOf, rangeOf, windowsOf } from "./windows.js";

const element = (id) => document.getElementById(id);

export class Panel {
  constructor(page) {
    this.page = page;
    this.windows = [];
    const on = (id, type, run) => element(id).addEventListener(type, run);
    on("layout", "change", (event) => this.setLayout(event.target.value));
    on("slice", "input", () => this._follow());
    on("window", "change", () => this.setWindow(this.windows[element("window").value]));
    on("level", "change", () => this._typed());
    on("width", "change", () => this._typed());
    on("opacity", "input", () => this.setOpacity(element("opacity").value / 100));
    const names = page.status.classes ?? [];
    element("classes").replaceChildren(...names.map((name) => new Option(name, name)));
    const { network, device } = page.status;
    element("server").textContent = [network, device].filter(Boolean).join(" on ");
  }

  /** Offer the grey levels that suit the image, and use the first. */
  newImage(image) {
    const { viewer } = this.page;
    this.windows = windowsOf(image, viewer.window);
    const options = this.windows.map(({ name }, index) => new Option(name, index));
    const own = new Option("Own", "own");
    own.hidden = true;
    element("window").replaceChildren(...options, own);
    this.setWindow(this.windows[0]);
    this.showLayout();
  }

  /** Show grey levels: {level, width}, one of those offered or others. */
  setWindow(window) {
    if (!window) return;
    const { low, high } = rangeOf(window);
    this.page.viewer.setWindow(low, high);
    const index = this.windows.indexOf(window);
    element("window").value = index < 0 ? "own" : index;
    element("level").value = round(window.level, window.width);
    element("width").value = round(window.width, window.width);
  }

  nextWindow() {
    const index = Number(element("window").value) || 0;
    if (this.windows.length) this.setWindow(this.windows[(index + 1) % this.windows.length]);
  }

  /** Change the grey levels by shares of the present width. */
  changeWindow({ level, width }) {
    const present = levelOf(this.page.viewer.window);
    this.setWindow({
      level: present.level + level * present.width,
      width: present.width * Math.exp(width),
    });
  }

  setLayout(layout) {
    this.page.viewer.setLayout(layout);
    this.showLayout();
  }

  showLayout() {
    const { viewer } = this.page;
    element("layout").querySelector(`[value=${viewer.layout}]`).checked = true;
    this.moved();
  }

  /** Show the crosshair's slice of the plane that the keyboard moves in. */
  moved() {
    const { viewer } = this.page;
    if (!viewer.order) return;
    const { axis, name } = VIEWS[viewer.plane];
    const slider = element("slice");
    slider.max = viewer.order.dims[axis];
    slider.value = viewer.at[axis] + 1;
    element("slice-name").textContent = name;
    element("slice-value").textContent = `${slider.value} / ${slider.max}`;
  }

  setOpacity(opacity) {
    const value = Math.min(1, Math.max(0, opacity));
    this.page.masks.setOpacity(value);
    element("opacity").value = Math.round(100 * value);
    element("opacity-value").textContent = `${Math.round(100 * value)} %`;
  }

  changeOpacity(by) {
    this.setOpacity(this.page.masks.opacity + by);
  }

  _follow() {
    const { viewer } = this.page;
    if (!viewer.order) return;
    const ras = [...viewer.at];
    ras[VIEWS[viewer.plane].axis] = element("slice").value - 1;
    viewer.moveTo(ras);
  }

  _typed() {
    const [level, width] = [element("level").valueAsNumber, element("width").valueAsNumber];
    if (Number.isFinite(level) && width > 0) this.setWindow({ level, width });
  }
}

/** Round to about three digits of the width. */
function round(value, width) {
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.max(width, 1e-9))));
  return Number(value.toFixed(Math.min(20, digits)));
}
