/** Frames: the answers of the server that carry a state and the labels of a box of voxels. */

/**
 * Return `{state, labels}` of a frame.
 *
 * A frame is a u32 (little-endian) n, n bytes of JSON, and runs of equal labels: the lengths of all
 * runs, u32 each, then one byte for the label of each. Runs fill the JSON's `box` [[z0, z1],
 * [y0, y1], [x0, x1]] (half-open), x fastest. Without a box there are none.
 */
export function decodeFrame(buffer) {
  if (buffer.byteLength < 4) throw new Error("the server's answer is cut off");
  const length = new DataView(buffer).getUint32(0, true);
  if (length > buffer.byteLength - 4) throw new Error("the server's answer is cut off");
  const state = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { state, labels: labelsOf(buffer.slice(4 + length), voxelsOf(state.box)) };
}

/** Return the labels of `count` voxels from their runs. */
function labelsOf(runs, count) {
  const number = Math.floor(runs.byteLength / 5);
  const lengths = new Uint32Array(runs, 0, number);
  const values = new Uint8Array(runs, 4 * number);
  const labels = new Uint8Array(count);
  let end = 0;
  for (let run = 0; run < number; run += 1) {
    const start = end;
    end += lengths[run];
    if (values[run]) labels.fill(values[run], start, end);
  }
  if (end !== count || values.length !== number) throw new Error("the mask does not fill its box");
  return labels;
}

/** Return the number of voxels of a box; 0 for null. */
export function voxelsOf(box) {
  return box ? box.reduce((count, [start, stop]) => count * (stop - start), 1) : 0;
}
