/** What the user can do, by key (`keys.js`), button or gesture. Method names are those of KEYS. */

import { LAYOUTS, PLANES } from "./layout.js";

const ARROWS = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, 1],
  ArrowDown: [0, -1],
};
const MODES = ["inside", "outside", "move"];
const HINTS = {
  inside: "Click on the target; right click or Shift where it is not. Drag: a box around it.",
  outside: "Click where the target is not. Drag: a box around the target.",
  move: "Click or drag to move the crosshair; nothing is sent.",
};
const ZOOM = 1.25;

const element = (id) => document.getElementById(id);

export class Actions {
  constructor(page) {
    this.page = page;
    const buttons = {
      undo: "undo", redo: "redo", clear: "clear", add: "add", "hide-all": "hideAll",
      "show-help": "help",
    };
    for (const [id, action] of Object.entries(buttons)) {
      element(id).addEventListener("click", () => this[action]());
    }
    element("close-help").addEventListener("click", () => element("help").close());
    element("mode").addEventListener("change", (event) => this.setMode(event.target.value));
    this.setMode("inside");
  }

  /** Enable the buttons that have an effect on this state. */
  enable({ image, undo, redo, targets }) {
    const active = targets.find(({ id }) => id === this.page.list.active);
    const has = Boolean(image);
    const enabled = {
      undo: undo > 0,
      redo: redo > 0,
      clear: has && Boolean(active?.prompts.length),
      add: has,
      "save-labels": has, "save-target": has, "save-labels-there": has, "save-targets-there": has,
      "save-prompts": has, "load-prompts": has,
    };
    for (const [id, on] of Object.entries(enabled)) element(id).disabled = !on;
  }

  // Prompts

  click(ras, positive) {
    const { session, viewer, list, overlay } = this.page;
    if (!this._ready()) return;
    overlay.pending.push({ ras, positive });
    viewer.draw({ volume: "no" });
    const prompt = { target: list.active, type: "point", at: viewer.order.toFile(ras), positive };
    session.change("prompts", prompt, { timed: true });
  }

  box(from, to) {
    const { session, viewer, list } = this.page;
    if (!this._ready()) return;
    const corners = { from: viewer.order.toFile(from), to: viewer.order.toFile(to) };
    session.change("prompts", { target: list.active, type: "box", ...corners }, { timed: true });
  }

  inside() {
    if (this._ready()) this.click(this.page.viewer.at, true);
  }

  outside() {
    if (this._ready()) this.click(this.page.viewer.at, false);
  }

  corner() {
    const { viewer, overlay } = this.page;
    if (!this._ready()) return;
    const first = overlay.corner;
    overlay.corner = first ? null : [...viewer.at];
    viewer.draw({ volume: "no" });
    if (first) this.box(first, viewer.at);
  }

  cancel() {
    this.page.gestures.cancel();
    this.page.messages.clear();
    for (const menu of document.querySelectorAll("details[open]")) menu.open = false;
  }

  undo() {
    this.page.session.change("undo", {});
  }

  redo() {
    this.page.session.change("redo", {});
  }

  clear() {
    this.page.session.change("clear", { target: this.page.list.active });
  }

  clearAll() {
    this.page.session.change("clear", { target: null });
  }

  setMode(mode) {
    this.page.gestures.mode = mode;
    element("mode").querySelector(`[value=${mode}]`).checked = true;
    element("mode-hint").textContent = HINTS[mode];
    element("overlay").style.cursor = mode === "move" ? "move" : "crosshair";
  }

  nextMode() {
    this.setMode(next(MODES, this.page.gestures.mode));
  }

  // Targets

  async add() {
    const { session, list, status } = this.page;
    if (!this._ready()) return;
    const used = new Set(list.targets.map(({ name }) => name));
    const name = status.classes?.find((each) => !used.has(each));
    if (await session.change("targets", name ? { name } : {})) {
      this.choose(session.state.targets.at(-1).id);
    }
  }

  pick(event) {
    const target = this.page.list.targets[Number(event.key) - 1];
    if (target) this.choose(target.id);
  }

  nextTarget() {
    this._step(1);
  }

  previousTarget() {
    this._step(-1);
  }

  _step(by) {
    const { targets, active } = this.page.list;
    const at = targets.findIndex(({ id }) => id === active) + by;
    if (targets.length) this.choose(targets[(at + targets.length) % targets.length].id);
  }

  choose(id) {
    const { list, overlay, viewer, session } = this.page;
    list.choose(id);
    overlay.active = id;
    viewer.draw({ volume: "no" });
    this.enable(session.state);
  }

  rename() {
    this.page.list.rename();
  }

  remove(event, id = this.page.list.active) {
    this.page.session.change(`targets/${id}`, undefined, { method: "DELETE" });
  }

  hide() {
    const { list, masks } = this.page;
    this.setHidden(list.active, !masks.hidden.has(list.active));
  }

  setHidden(id, hidden) {
    const { list, masks } = this.page;
    masks.setHidden(id, hidden);
    list.show(list.targets);
  }

  hideAll() {
    const { masks } = this.page;
    masks.setShown(!masks.areShown);
    const button = element("hide-all");
    button.textContent = masks.areShown ? "Hide all" : "Show all";
    button.setAttribute("aria-pressed", String(!masks.areShown));
  }

  // View

  arrows(event) {
    const [right, up] = ARROWS[event.key];
    const step = stepOf(event);
    if (this._ready()) this.page.viewer.moveBy(right * step, up * step, 0);
  }

  sliceUp(event) {
    if (this._ready()) this.page.viewer.moveBy(0, 0, stepOf(event));
  }

  sliceDown(event) {
    if (this._ready()) this.page.viewer.moveBy(0, 0, -stepOf(event));
  }

  nextPlane() {
    const { viewer, panel } = this.page;
    viewer.setPlane(next(PLANES, viewer.plane));
    panel.showLayout();
  }

  nextLayout() {
    this.page.panel.setLayout(next(LAYOUTS, this.page.viewer.layout));
  }

  zoomIn() {
    this.page.viewer.zoomBy(ZOOM);
  }

  zoomOut() {
    this.page.viewer.zoomBy(1 / ZOOM);
  }

  resetView() {
    if (this._ready()) this.page.viewer.resetView();
  }

  nextWindow() {
    this.page.panel.nextWindow();
  }

  moreOpaque() {
    this.page.panel.changeOpacity(0.1);
  }

  lessOpaque() {
    this.page.panel.changeOpacity(-0.1);
  }

  turnLeft() {
    if (this._ready()) this.page.viewer.turnBy(-10, 0);
  }

  turnRight() {
    if (this._ready()) this.page.viewer.turnBy(10, 0);
  }

  // Files

  open() {
    this.page.files.chooseImage();
  }

  save() {
    if (this._ready()) this.page.files.download("labels");
  }

  savePrompts() {
    if (this._ready()) this.page.files.download("prompts");
  }

  loadPrompts() {
    if (this._ready()) this.page.files.choosePrompts();
  }

  help() {
    element("help").showModal();
  }

  _ready() {
    return Boolean(this.page.viewer.order);
  }
}

/** Return how far a key moves: 10 with Shift, else 1. */
function stepOf(event) {
  return event.shiftKey ? 10 : 1;
}

function next(list, present) {
  return list[(list.indexOf(present) + 1) % list.length];
}
