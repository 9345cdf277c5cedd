/**
 * One session with the server: the state, and the order of the requests that change it.
 *
 * Requests go out one after the other, in the order of the user's actions. Events, all with
 * `detail`: "state" (state, the newest), "labels" (box and labels that changed), "image" (there is
 * another image), "busy" (number of requests that wait), "trouble" (an error to show), "answered"
 * (milliseconds of a prompt).
 */

import { ApiError, OfflineError, getFrame, getJson, sendFile } from "./api.js";
import { colorOf } from "./colors.js";

const HEARTBEAT_MS = 15000;
const RETRY_MS = 3000;
const KEY = "fastsam3d-session";

/** Return the id of this tab's session. In another page's frame the browser may keep nothing. */
function stored() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function store(id) {
  try {
    sessionStorage.setItem(KEY, id);
  } catch { /* a reloaded frame opens another session, or the one that all pages show */ }
}

export class Session extends EventTarget {
  /** @param classColors colours of target names, "#rrggbb". */
  constructor(classColors = {}) {
    super();
    this.classColors = classColors;
    this.state = null;
    this.waiting = 0;
    this.online = true;
    this._lost = false; // an action did not reach the server
    this._tail = Promise.resolve();
  }

  /** Open the session of this tab again, or a new one. */
  async open() {
    const id = stored();
    const state = await getJson("api/sessions", { method: "POST", json: id ? { resume: id } : {} });
    store(state.session);
    const before = this.state;
    this._take(state);
    if (before && before.image?.digest === state.image?.digest) await this.refresh();
    if (!this._timer) {
      this._timer = setInterval(() => this._heartbeat(), HEARTBEAT_MS);
      document.addEventListener("visibilitychange", () => this._heartbeat());
    }
  }

  get path() {
    return `api/sessions/${encodeURIComponent(this.state.session)}`;
  }

  /** Change the session. Returns whether the server did; errors are shown, not thrown. */
  change(path, json, { method = "POST", timed = false } = {}) {
    return this._queue(async () => {
      const started = performance.now();
      const frame = await getFrame(`${this.path}/${path}`, { method, json });
      await this._takeFrame(frame);
      if (timed) {
        const detail = { ms: performance.now() - started, network: frame.state.network_ms };
        this._tell("answered", detail);
      }
    });
  }

  /** Send an image file; `onProgress` gets the share sent. */
  sendImage(file, onProgress) {
    const path = `image?name=${encodeURIComponent(file.name)}`;
    return this._queue(async () => {
      const sent = sendFile(`${this.path}/${path}`, file, onProgress);
      const { state } = await sent.catch((error) => {
        error.message = `${file.name}: ${error.message}`;
        throw error;
      });
      this._take(state, true);
    });
  }

  /** Send a file of prompts, which replaces all prompts. */
  sendPrompts(file) {
    return this._queue(async () => {
      const path = `${this.path}/prompts.json`;
      await this._takeFrame(await getFrame(path, { method: "POST", body: file }));
    });
  }

  /** Ask for the labels of the whole image. */
  async refresh() {
    const frame = await getFrame(`${this.path}/mask`);
    if (frame.state.revision < this.state.revision) return; // a click was answered meanwhile
    this._take(frame.state);
    this._tell("labels", { box: frame.state.box, labels: frame.labels, all: true });
  }

  _queue(action) {
    this.waiting += 1;
    this._tell("busy", this.waiting);
    const done = this._tail.then(async () => {
      try {
        await action();
        this._setOnline(true);
        return true;
      } catch (error) {
        await this._handle(error, true);
        return false;
      } finally {
        this.waiting -= 1;
        this._tell("busy", this.waiting);
      }
    });
    this._tail = done;
    return done;
  }

  async _takeFrame({ state, labels }) {
    const missed = state.revision > this.state.revision + 1;
    this._take(state);
    if (missed) {
      await this.refresh(); // another tab changed the session in between
    } else if (state.box) {
      this._tell("labels", { box: state.box, labels });
    }
  }

  _take(state, isNew = false) {
    const before = this.state;
    this.state = state;
    for (const target of state.targets) {
      target.color ||= this.classColors[target.name] ?? colorOf(target.id);
    }
    this._tell("state", state);
    const isOther = !before || before.image?.digest !== state.image?.digest;
    if (isNew || isOther) this._tell("image", state.image);
  }

  /** Show an error. `isAction`: it kept an action of the user's from the server. */
  async _handle(error, isAction = false) {
    if (error instanceof ApiError && error.code === "token") {
      location.replace("./");
    } else if (error instanceof ApiError && error.code === "no_session") {
      await this._reopen(error);
    } else if (error instanceof OfflineError) {
      this._lost ||= isAction;
      this._setOnline(false);
    } else {
      this._tell("trouble", error);
      if (error.code === "no_target") await this.refresh();
    }
  }

  async _reopen(cause) {
    const { session: before } = this.state;
    try {
      await this.open();
      const text = this.state.session === before
        ? "The session was opened again: repeat the last action."
        : "The session had ended on the server. Open its image again: its masks are then offered.";
      this._tell("trouble", new Error(text));
    } catch (error) {
      this._tell("trouble", error instanceof OfflineError ? error : cause);
    }
  }

  /** Remember whether the server answers; try again from time to time while it does not. */
  _setOnline(online) {
    if (online === this.online) return;
    this.online = online;
    this._tell("online", online);
    if (online && this._lost) {
      this._lost = false;
      this._tell("trouble", new Error("The last action did not reach the server: repeat it."));
    }
    if (!online) setTimeout(() => this._retry(), RETRY_MS);
  }

  async _retry() {
    try {
      await this.open();
      this._setOnline(true);
    } catch (error) {
      if (error instanceof OfflineError) setTimeout(() => this._retry(), RETRY_MS);
      else await this._handle(error);
    }
  }

  async _heartbeat() {
    if (this.waiting || !this.online) return; // in a hidden tab too: the session stays open
    try {
      const { revision } = await getJson(`${this.path}/heartbeat`);
      if (revision > this.state.revision && !this.waiting) await this.refresh();
    } catch (error) {
      await this._handle(error);
    }
  }

  _tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
