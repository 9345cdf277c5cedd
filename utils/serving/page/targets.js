/** The list of targets: choose, rename, colour, hide and remove them. */

import { icon } from "./icon.js";

export class TargetList extends EventTarget {
  /** Events: "choose" {id}, "edit" {id, name or color}, "hide" {id, hidden}, "remove" {id}. */
  constructor(list) {
    super();
    this.list = list;
    this.hidden = new Set();
    this.areShown = true;
    this.active = 1;
    this._targets = [];
  }

  get targets() {
    return this._targets;
  }

  /** Show the targets of the server's state; the focus stays where it is. */
  show(targets) {
    this._targets = targets;
    if (!targets.some(({ id }) => id === this.active)) this.active = targets[0]?.id ?? 1;
    const focused = document.activeElement?.dataset?.key;
    const draft = document.activeElement?.classList.contains("name")
      ? document.activeElement.value
      : null;
    this.list.replaceChildren(...targets.map((target, index) => this._row(target, index)));
    if (!focused || !document.hasFocus()) return;
    const again = this.list.querySelector(`[data-key="${focused}"]`);
    if (again && draft !== null) again.value = draft;
    again?.focus({ preventScroll: true });
  }

  choose(id) {
    this.active = id;
    this.show(this._targets);
    this.list.querySelector("li.active")?.scrollIntoView({ block: "nearest" });
  }

  /** Put the cursor into the name of the active target. */
  rename() {
    const input = this.list.querySelector("li.active input.name");
    input?.focus();
    input?.select();
  }

  _row(target, index) {
    const { id, name, color } = target;
    const isActive = id === this.active;
    const row = document.createElement("li");
    row.className = isActive ? "target active" : "target";
    const radio = input("radio", `pick-${id}`, `Work on ${name}`);
    radio.name = "target";
    radio.checked = isActive;
    radio.addEventListener("change", () => this._tell("choose", { id }));
    const swatch = input("color", `color-${id}`, `Colour of ${name}`);
    swatch.value = color;
    swatch.addEventListener("change", () => this._tell("edit", { id, color: swatch.value }));
    row.append(radio, swatch, this._name(target, isActive), this._size(target));
    if (index < 9) row.append(text("kbd", String(index + 1)));
    row.append(this._eye(id, name), this._remove(id, name));
    row.addEventListener("click", (event) => {
      if (event.target.closest("button, input")) return;
      this._tell("choose", { id });
    });
    return row;
  }

  _name({ id, name }, isActive) {
    if (!isActive) return text("span", name, "name");
    const field = input("text", `name-${id}`, "Name of the target");
    field.className = "name";
    field.value = name;
    field.maxLength = 64;
    field.setAttribute("list", "classes");
    field.addEventListener("change", () => {
      if (field.value.trim()) this._tell("edit", { id, name: field.value.trim() });
      else field.value = name;
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") field.value = name;
      if (event.key === "Enter" || event.key === "Escape") field.blur();
    });
    return field;
  }

  _size({ voxels, ml }) {
    const size = text("span", voxels ? `${formatMl(ml)} ml` : "empty", "size");
    size.title = `${voxels.toLocaleString("en")} voxels`;
    return size;
  }

  _eye(id, name) {
    const isHidden = this.hidden.has(id);
    const label = `${isHidden ? "Show" : "Hide"} the mask of ${name}`;
    const eye = button(isHidden ? "eye-off" : "eye", `hide-${id}`, label);
    eye.addEventListener("click", () => this._tell("hide", { id, hidden: !isHidden }));
    return eye;
  }

  _remove(id, name) {
    const made = button("trash", `remove-${id}`, `Remove the target ${name}`);
    made.addEventListener("click", () => this._tell("remove", { id }));
    return made;
  }

  _tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** Return millilitres with two digits or more: 0.052, 4.1, 41, 1412. */
export function formatMl(ml) {
  return ml >= 10 ? Math.round(ml).toLocaleString("en") : String(Number(ml.toPrecision(2)));
}

function input(type, key, label) {
  const made = document.createElement("input");
  made.type = type;
  made.dataset.key = key;
  made.setAttribute("aria-label", label);
  if (type !== "radio") made.title = label;
  return made;
}

function button(symbol, key, label) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "quiet square";
  made.dataset.key = key;
  made.setAttribute("aria-label", label);
  made.title = label;
  made.append(icon(symbol));
  return made;
}

function text(tag, content, style = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  made.className = style;
  return made;
}
