/** HTTP requests to the server. All addresses are relative: the page may lie behind a prefix. */

import { decodeFrame } from "./frame.js";

/** The server refused a request; `message` is a text for the user. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }
}

/** The server did not answer at all. */
export class OfflineError extends Error {
  constructor() {
    super("The server does not answer. Look whether serve.py still runs; the page keeps trying.");
    this.name = "OfflineError";
  }
}

/** Return the response of a request, or throw `ApiError` or `OfflineError`. */
export async function request(path, { method = "GET", json, body, signal } = {}) {
  const options = { method, signal, body, credentials: "same-origin", cache: "no-cache" };
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers = { "Content-Type": "application/json" };
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new OfflineError();
  }
  if (response.ok) return response;
  throw errorOf(response.status, await response.text());
}

/** Return the JSON of an answer. */
export async function getJson(path, options) {
  const response = await request(path, options);
  return response.status === 204 ? null : await response.json();
}

/** Return the frame of an answer: a state, and labels of the voxels that changed. */
export async function getFrame(path, options) {
  const response = await request(path, options);
  return decodeFrame(await response.arrayBuffer());
}

/**
 * Send a file and return the frame of the answer. `onProgress` gets the share sent, 0 to 1.
 * XMLHttpRequest, since fetch does not tell how much was sent.
 */
export function sendFile(path, file, onProgress) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open("POST", path);
    xhr.responseType = "arraybuffer";
    xhr.upload.onprogress = (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    };
    xhr.onload = () => {
      if (xhr.status >= 200 && xhr.status < 300) {
        resolve(decodeFrame(xhr.response));
      } else {
        reject(errorOf(xhr.status, new TextDecoder().decode(xhr.response)));
      }
    };
    xhr.onerror = () => reject(new OfflineError());
    xhr.send(file);
  });
}

/** Return the bytes of an answer of about `size`. `onProgress` gets the share received, 0 to 1. */
export async function getBytes(path, size, onProgress) {
  const { body, headers } = await request(path);
  const exact = headers.has("Content-Encoding") ? 0 : Number(headers.get("Content-Length"));
  let bytes = new Uint8Array(exact || size);
  let received = 0;
  for (const reader = body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (received + value.length > bytes.length) {
      const larger = new Uint8Array(received + value.length + 2 ** 20);
      larger.set(bytes);
      bytes = larger;
    }
    bytes.set(value, received);
    received += value.length;
    onProgress(Math.min(1, received / bytes.length));
  }
  return received === bytes.length ? bytes.buffer : bytes.slice(0, received).buffer;
}

function errorOf(status, text) {
  try {
    const { code, message } = JSON.parse(text).error;
    return new ApiError(status, code, message);
  } catch {
    const shown = `The server answered ${status} without a reason. Its log says more.`;
    return new ApiError(status, "unknown", shown);
  }
}
