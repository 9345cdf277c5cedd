/** The page of serve.py: makes the parts and connects them. */

import { ApiError, getBytes, getJson } from "./api.js";
import { Actions } from "./actions.js";
import { Files } from "./files.js";
import { Footer } from "./footer.js";
import { Gestures } from "./gestures.js";
import { fillHelp, listen } from "./keys.js";
import { Masks } from "./masks.js";
import { Messages } from "./messages.js";
import { Overlay } from "./overlay.js";
import { Panel } from "./panel.js";
import { Session } from "./session.js";
import { TargetList } from "./targets.js";
import { startOf } from "./windows.js";

const WAIT_MS = 700; // between two questions whether the server is ready
const BUSY_MS = 120; // shorter waits show no bar

const element = (id) => document.getElementById(id);

async function start() {
  history.replaceState(null, "", location.pathname); // the token, if there was one
  const messages = new Messages(element("messages"), element("veil"));
  try {
    const status = await readyServer(messages);
    const viewer = await startViewer();
    const page = connect(status, viewer, messages);
    await page.session.open();
  } catch (error) {
    if (error instanceof ApiError && error.code === "token") location.replace("./");
    const isRefused = error instanceof ApiError;
    messages.wait(isRefused ? `${error.message} Reload the page to try again.` : error.message);
    element("veil").querySelector("progress").hidden = true;
    console.error(error);
  }
}

/** Return the server's status once it is ready. */
async function readyServer(messages) {
  for (;;) {
    try {
      const status = await getJson("api/status");
      if (status.ready) return status;
      messages.wait("The server is warming up, so that the first click is quick …");
    } catch (error) {
      if (error instanceof ApiError) throw error;
      messages.wait("The server does not answer yet …");
    }
    await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
  }
}

async function startViewer() {
  let module;
  try {
    module = await import("./viewer.js");
  } catch (error) {
    console.error(error);
    throw new Error("NiiVue is missing, which draws the image. Run 'make page', then reload.");
  }
  const viewer = new module.Viewer(element("image"), element("still"));
  await viewer.start();
  return viewer;
}

/** Make all parts, and let each know of the others' changes. */
function connect(status, viewer, messages) {
  const session = new Session(status.class_colors);
  const masks = new Masks(viewer);
  const overlay = new Overlay(element("overlay"), viewer);
  const gestures = new Gestures(element("overlay"), viewer, overlay);
  const list = new TargetList(element("targets"));
  list.hidden = masks.hidden;
  const page = { status, viewer, messages, session, masks, overlay, gestures, list };
  page.footer = new Footer(page);
  page.panel = new Panel(page);
  page.files = new Files(page);
  page.actions = new Actions(page);
  connectSession(page);
  connectPrompts(page);
  connectTargets(page);
  fillHelp(element("keys"));
  listen(element("overlay"), (action, event) => {
    if (element("veil").hidden) page.actions[action](event); // no image is being loaded
  });
  window.fastsam3d = page; // for the browser's console
  return page;
}

function connectSession(page) {
  const { session, messages, overlay, list, masks } = page;
  session.addEventListener("state", ({ detail: state }) => {
    overlay.targets = state.targets;
    list.show(state.targets);
    overlay.active = list.active;
    masks.setTargets(state.targets);
    page.actions.enable(state);
    for (const note of state.notes ?? []) messages.note(note);
  });
  session.addEventListener("labels", ({ detail: { box, labels, all } }) => {
    masks.paste(box, labels, all);
  });
  session.addEventListener("image", ({ detail: image }) => showImage(page, image));
  session.addEventListener("trouble", ({ detail }) => {
    messages.error(detail.message);
    list.show(list.targets); // a name that was refused
  });
  session.addEventListener("answered", ({ detail }) => page.footer.answered(detail));
  session.addEventListener("online", ({ detail: online }) => {
    if (online) messages.ready();
    else messages.wait("The server does not answer. Does serve.py run? The page keeps trying …");
  });
  let timer = 0;
  session.addEventListener("busy", ({ detail: waiting }) => {
    clearTimeout(timer);
    const bar = element("progress");
    if (waiting) {
      timer = setTimeout(() => (bar.hidden = false), BUSY_MS);
    } else {
      bar.hidden = true;
      overlay.pending = [];
      page.viewer.draw({ volume: "no" });
    }
    element("overlay").setAttribute("aria-busy", String(waiting > 0));
  });
}

/** Fetch the image and its masks, and show them. */
async function showImage(page, image) {
  const { viewer, session, messages, masks } = page;
  element("empty").hidden = Boolean(image);
  element("image-name").textContent = image ? describe(image) : "";
  document.title = image ? `${image.name} – FastSAM3D` : "FastSAM3D";
  page.actions.enable(session.state);
  if (!image) {
    viewer.clear();
    messages.ready();
    return;
  }
  try {
    viewer.requireSize(image);
    const path = `${session.path}/image.nii?d=${encodeURIComponent(image.digest)}`;
    messages.wait(`Loading ${image.name} …`, 0);
    const bytes = await getBytes(path, image.view_bytes, (share) => {
      messages.wait(`Loading ${image.name} …`, share);
    });
    messages.wait(`Drawing ${image.name} …`);
    await viewer.show(bytes, image, startOf(image));
    page.panel.newImage(image);
    masks.reset();
    await session.refresh();
    messages.ready();
    offerEarlier(page);
    if (image.warning) messages.note(image.warning);
  } catch (error) {
    viewer.clear();
    messages.ready();
    element("empty").hidden = false;
    messages.error(error.message);
  }
}

function describe({ name, shape_zyx: shape, spacing_zyx: spacing }) {
  const size = [...shape].reverse().join(" × ");
  const mm = [...spacing].reverse().map((length) => Number(length.toPrecision(3)));
  return `${name}   ${size} voxels of ${mm.join(" × ")} mm`;
}

/** Offer the newest work that was saved for this image. */
function offerEarlier({ session, messages }) {
  const [earlier] = session.state.earlier ?? [];
  const untouched = session.state.targets.every(({ prompts }) => !prompts.length);
  if (!earlier || !untouched) return;
  const when = new Date(earlier.saved).toLocaleString();
  const text = `There is earlier work on this image: ${count(earlier.targets, "target")}, ` +
    `${count(earlier.prompts, "prompt")}, ${when}.`;
  const run = () => session.change("earlier", { id: earlier.id });
  messages.note(text, { label: "Take it up", run });
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function connectPrompts({ gestures, actions, footer, panel, viewer, messages }) {
  const on = (type, run) => gestures.addEventListener(type, ({ detail }) => run(detail));
  on("click", ({ ras, positive }) => actions.click(ras, positive));
  on("box", ({ from, to }) => actions.box(from, to));
  on("hover", (hover) => footer.hover(hover?.ras));
  on("window", (change) => panel.changeWindow(change));
  viewer.addEventListener("lost", () => {
    messages.wait("The browser has lost the graphics card. Reload the page; the masks are kept.");
  });
  viewer.addEventListener("moved", () => {
    footer.moved();
    panel.moved();
  });
}

function connectTargets({ list, actions, session }) {
  const on = (type, run) => list.addEventListener(type, ({ detail }) => run(detail));
  on("choose", ({ id }) => actions.choose(id));
  on("hide", ({ id, hidden }) => actions.setHidden(id, hidden));
  on("remove", ({ id }) => actions.remove(null, id));
  on("edit", ({ id, ...fields }) => {
    session.change(`targets/${id}`, fields, { method: "PATCH" });
  });
}

start();
