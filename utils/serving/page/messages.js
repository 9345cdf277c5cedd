/** Texts for the user: errors and notes that stay until closed, and what is being waited for. */

const NOTE_MS = 8000;

export class Messages {
  constructor(list, veil) {
    this.list = list;
    this.veil = veil;
  }

  /** Show an error until it is closed; the same text is shown once. */
  error(text) {
    return this._add(text, "error");
  }

  /** Show a note for a while; `action` is {label, run} of a button, and keeps the note open. */
  note(text, action = null) {
    const item = this._add(text, "note", action);
    if (!action) setTimeout(() => item.remove(), NOTE_MS);
    return item;
  }

  clear() {
    this.list.replaceChildren();
  }

  /** Cover the image while something is loaded; `share` is 0 to 1, or null where it is unknown. */
  wait(text, share = null) {
    this.veil.hidden = false;
    this.veil.querySelector("p").textContent = text;
    const bar = this.veil.querySelector("progress");
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
  }

  ready() {
    this.veil.hidden = true;
  }

  _add(text, kind, action = null) {
    for (const item of this.list.children) if (item.dataset.text === text) item.remove();
    const item = document.createElement("li");
    item.className = `message ${kind}`;
    item.dataset.text = text;
    item.setAttribute("role", kind === "error" ? "alert" : "status");
    const words = document.createElement("p");
    words.textContent = text;
    item.append(words);
    if (action) {
      item.append(button(action.label, "", () => {
        item.remove();
        action.run();
      }));
    }
    item.append(button("Close", "quiet", () => item.remove()));
    this.list.append(item);
    return item;
  }
}

function button(label, style, run) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.className = style;
  made.addEventListener("click", run);
  return made;
}
