/** The keyboard: what each key does, and the table of it in the help. */

/** `keys` as written in the help; `on` names an action of app.js. */
export const KEYS = [
  { group: "Prompts", keys: "Enter", on: "inside", text: "click inside, at the crosshair" },
  { group: "Prompts", keys: "Shift+Enter", on: "outside", text: "click outside, at the crosshair" },
  { group: "Prompts", keys: "B", on: "corner", text: "corner of a box at the crosshair, twice" },
  { group: "Prompts", keys: "M", on: "nextMode", text: "next mode: inside, outside, move" },
  { group: "Prompts", keys: "Ctrl+Z", on: "undo", text: "undo" },
  { group: "Prompts", keys: "Ctrl+Shift+Z", on: "redo", text: "redo" },
  { group: "Prompts", keys: "Ctrl+Y", on: "redo", text: "redo" },
  { group: "Prompts", keys: "C", on: "clear", text: "clear the target's prompts" },
  { group: "Prompts", keys: "Shift+C", on: "clearAll", text: "clear all prompts" },
  { group: "Prompts", keys: "Escape", on: "cancel", text: "stop drawing; close messages" },
  { group: "Targets", keys: "N", on: "add", text: "new target" },
  { group: "Targets", keys: "1 to 9", on: "pick", text: "work on this target" },
  { group: "Targets", keys: "T", on: "nextTarget", text: "work on the next target" },
  { group: "Targets", keys: "Shift+T", on: "previousTarget", text: "work on the previous target" },
  { group: "Targets", keys: "R", on: "rename", text: "rename the target" },
  { group: "Targets", keys: "Delete", on: "remove", text: "remove the target" },
  { group: "Targets", keys: "H", on: "hide", text: "hide or show the target's mask" },
  { group: "Targets", keys: "Shift+H", on: "hideAll", text: "hide or show all masks" },
  { group: "View", keys: "Arrow keys", on: "arrows", text: "move the crosshair; Shift: 10 voxels" },
  { group: "View", keys: "Page Up", on: "sliceUp", text: "next slice; Shift: 10 slices" },
  { group: "View", keys: "Page Down", on: "sliceDown", text: "previous slice; Shift: 10 slices" },
  { group: "View", keys: "P", on: "nextPlane", text: "next plane for the keyboard" },
  { group: "View", keys: "V", on: "nextLayout", text: "next view: all, one plane, the volume" },
  { group: "View", keys: "+", on: "zoomIn", text: "magnify" },
  { group: "View", keys: "-", on: "zoomOut", text: "shrink" },
  { group: "View", keys: "0", on: "resetView", text: "whole image" },
  { group: "View", keys: "W", on: "nextWindow", text: "next grey levels" },
  { group: "View", keys: "]", on: "moreOpaque", text: "masks more opaque" },
  { group: "View", keys: "[", on: "lessOpaque", text: "masks less opaque" },
  { group: "View", keys: "J", on: "turnLeft", text: "turn the volume to the left" },
  { group: "View", keys: "L", on: "turnRight", text: "turn the volume to the right" },
  { group: "File", keys: "Ctrl+O", on: "open", text: "open an image" },
  { group: "File", keys: "Ctrl+S", on: "save", text: "save the masks as one label file" },
  { group: "File", keys: "E", on: "savePrompts", text: "save the prompts" },
  { group: "File", keys: "I", on: "loadPrompts", text: "load prompts" },
  { group: "File", keys: "?", on: "help", text: "this help" },
];

const ACTIONS = new Map(KEYS.map(({ keys, on }) => [keys.toLowerCase(), on]));
const NAMES = { pageup: "page up", pagedown: "page down", backspace: "delete", "=": "+", _: "-" };
const ON_CANVAS = new Set(["inside", "outside", "arrows"]); // elsewhere these keys serve buttons
const REPEATED = new Set(["arrows", "sliceUp", "sliceDown", "zoomIn", "zoomOut", "undo", "redo"]);
const TYPED = "input[type=text], input[type=number], textarea, select, dialog";

/** Call `run(action, event)` for the keys above; keys typed into fields are left alone. */
export function listen(canvas, run) {
  document.addEventListener("keydown", (event) => {
    if (event.target.closest(TYPED)) return;
    const action = actionOf(event);
    if (!action || (event.repeat && !REPEATED.has(action) && !/opaque|turn/i.test(action))) return;
    if (event.target.type === "range" && /^(arrow|slice)/.test(action)) return;
    const onCanvas = event.target === canvas || event.target === document.body;
    if (ON_CANVAS.has(action) && !onCanvas) return;
    event.preventDefault();
    run(action, event);
  });
}

/** Return the action of a key press; undefined: none. */
export function actionOf(event) {
  if (event.altKey || event.isComposing) return undefined;
  const key = event.key.toLowerCase();
  if (key.startsWith("arrow")) return event.ctrlKey || event.metaKey ? undefined : "arrows";
  const held = event.ctrlKey || event.metaKey ? "ctrl+" : "";
  if (/^[1-9]$/.test(key) && !held) return "pick";
  const name = NAMES[key] ?? key;
  const shift = event.shiftKey && (/^[a-z]$/.test(key) || key === "enter") ? "shift+" : "";
  return ACTIONS.get(`${held}${shift}${name}`);
}

/** Fill the help's table. */
export function fillHelp(container) {
  for (const group of new Set(KEYS.map((key) => key.group))) {
    const table = document.createElement("table");
    const caption = table.createCaption();
    caption.textContent = group;
    for (const { keys, text } of KEYS.filter((key) => key.group === group)) {
      const row = table.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      const parts = keys.length > 1 ? keys.split("+") : [keys];
      parts.forEach((part, index) => {
        if (index) head.append("+");
        const kbd = document.createElement("kbd");
        kbd.textContent = part;
        head.append(kbd);
      });
      row.append(head);
      row.insertCell().textContent = text;
    }
    container.append(table);
  }
}
