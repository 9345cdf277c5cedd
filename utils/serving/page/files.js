/** Open images and prompts, by dialog or by drag and drop; save masks and prompts. */

import { getJson, request } from "./api.js";

const element = (id) => document.getElementById(id);

export class Files {
  constructor(page) {
    this.page = page;
    const on = (id, run) => element(id).addEventListener("click", run);
    on("open", () => this.chooseImage());
    on("open-here", () => this.chooseImage());
    on("load-prompts", () => this.choosePrompts());
    on("save-prompts", () => this.download("prompts"));
    on("save-labels", () => this.download("labels"));
    on("save-target", () => this.download("target"));
    on("save-labels-there", () => this.saveThere("labels"));
    on("save-targets-there", () => this.saveThere("targets"));
    this._onChosen("image-file", (file) => this.open(file));
    this._onChosen("prompts-file", (file) => this.open(file));
    const { formats, save_dir: folder } = page.status;
    element("image-file").accept = [...formats, ".gz"].join(",");
    element("formats").textContent = formats.join(", ");
    element("save-to-folder").hidden = !folder;
    element("save-folder").textContent = folder ?? "";
    this._listenToDrops();
    document.addEventListener("click", (event) => {
      for (const menu of document.querySelectorAll("details[open]")) {
        const inMenu = menu.contains(event.target);
        if (!inMenu || event.target.closest("button")) menu.open = false;
      }
    });
  }

  chooseImage() {
    this._choose("image-file");
  }

  choosePrompts() {
    this._choose("prompts-file");
  }

  /** Open a file: an image, or prompts if its name ends in .json. */
  async open(file) {
    const { session, messages, viewer } = this.page;
    messages.clear();
    if (file.name.toLowerCase().endsWith(".json")) {
      if (!viewer.order) messages.error("Open the image of these prompts first.");
      else await session.sendPrompts(file);
      return;
    }
    const fault = this._fault(file);
    if (fault) {
      messages.error(fault);
      return;
    }
    messages.wait(`Sending ${file.name} …`, 0);
    const sent = await session.sendImage(file, (share) => {
      const isSent = share === 1;
      messages.wait(`${isSent ? "Reading" : "Sending"} ${file.name} …`, isSent ? null : share);
    });
    if (!sent && session.online) messages.ready();
  }

  /** Let the browser save a file of the server: "labels", "target" or "prompts". */
  async download(kind) {
    const { session, messages, list } = this.page;
    const form = element("format").value;
    const query = { labels: `kind=labels`, target: `kind=target&target=${list.active}` }[kind];
    const path = kind === "prompts" ? "prompts.json" : `download?${query}&format=${form}`;
    try {
      const response = await request(`${session.path}/${path}`);
      const blob = await response.blob();
      const name = nameOf(response.headers.get("Content-Disposition")) ?? `${kind}.nii.gz`;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      messages.note(`Saved as ${name}, in the browser's downloads.`);
    } catch (error) {
      messages.error(error.message);
    }
  }

  /** Let the server save masks in its own folder: "labels" or "targets". */
  async saveThere(kind) {
    const { session, messages } = this.page;
    const json = { kind, format: element("format").value };
    try {
      const { files } = await getJson(`${session.path}/save`, { method: "POST", json });
      messages.note(`Saved on the server: ${files.join(", ")}`);
    } catch (error) {
      messages.error(error.message);
    }
  }

  /** Return why a file cannot be sent; an empty text if it can. */
  _fault(file) {
    const { formats, max_upload_bytes: most } = this.page.status;
    const name = file.name.toLowerCase();
    if (!formats.some((ending) => name.endsWith(ending))) {
      return `${file.name} is no image that this page reads. Expected ${formats.join(", ")}.`;
    }
    if (most && file.size > most) {
      return `${file.name} has ${megabytes(file.size)}; the server takes ${megabytes(most)}. ` +
        "Start it on the file instead: python serve.py --image FILE, or crop the image.";
    }
    return "";
  }

  _choose(id) {
    element(id).value = "";
    element(id).click();
  }

  _onChosen(id, run) {
    element(id).addEventListener("change", (event) => {
      if (event.target.files.length) run(event.target.files[0]);
    });
  }

  _listenToDrops() {
    let depth = 0; // of elements that the pointer has entered
    const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
    const show = (shown) => (element("drop").hidden = !shown);
    const on = (type, run) => window.addEventListener(type, (event) => {
      if (!holdsFile(event)) return;
      event.preventDefault();
      run(event);
    });
    on("dragenter", () => show((depth += 1) > 0));
    on("dragleave", () => show((depth -= 1) > 0));
    on("dragover", () => {});
    on("drop", (event) => {
      show((depth = 0));
      const { files } = event.dataTransfer;
      if (files.length > 1) this.page.messages.error("Drop one file at a time.");
      else this.open(files[0]);
    });
  }
}

function megabytes(bytes) {
  return `${Math.round(bytes / 1e6).toLocaleString("en")} MB`;
}

/** Return the file name of a Content-Disposition header; undefined: there is none. */
export function nameOf(header) {
  const encoded = /filename\*=UTF-8''([^;]+)/i.exec(header ?? "");
  if (encoded) return decodeURIComponent(encoded[1]);
  return /filename="?([^";]+)"?/i.exec(header ?? "")?.[1];
}
