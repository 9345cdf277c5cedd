/** Frames: the answers of the server that carry a state and the labels of a box of voxels. */

/**
 * Return `{state, labels}` of a frame.
 *
 * A frame is a u32 (little-endian) n, n bytes of JSON, and one byte for each voxel of the JSON's
 * `box` [[z0, z1], [y0, y1], [x0, x1]] (half-open), x fastest. Without a box there are no labels.
 */
export function decodeFrame(buffer) {
  if (buffer.byteLength < 4) throw new Error("the server's answer is cut off");
  const length = new DataView(buffer).getUint32(0, true);
  if (length > buffer.byteLength - 4) throw new Error("the server's answer is cut off");
  const state = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const labels = new Uint8Array(buffer, 4 + length);
  if (labels.length !== voxelsOf(state.box)) throw new Error("the mask does not fill its box");
  return { state, labels };
}

/** Return the number of voxels of a box; 0 for null. */
export function voxelsOf(box) {
  return box ? box.reduce((count, [start, stop]) => count * (stop - start), 1) : 0;
}
