/** The masks on the image: NiiVue's drawing, with one label for each target. */

import { pasteBox } from "./voxels.js";

const DRAWING_UNIT = 7; // NiiVue's texture unit of the drawing

export class Masks {
  constructor(viewer) {
    this.viewer = viewer;
    this.opacity = 0.45;
    this.areShown = true;
    this.hidden = new Set(); // ids of targets
    this._targets = [];
  }

  /** Forget all masks; the viewer has another image. */
  reset() {
    const { nv, order } = this.viewer;
    const { gl } = nv;
    nv.drawBitmap = new Uint8Array(order.dims.reduce((product, n) => product * n, 1));
    nv.drawTexture = nv.r8Tex(nv.drawTexture, gl.TEXTURE0 + DRAWING_UNIT, nv.back.dims, true);
    this._isEmpty = true;
    this.hidden.clear();
    this.colour();
  }

  /** Put the labels of a box, in the file's order, in place; `all`: and nothing elsewhere. */
  paste(box, labels, all = false) {
    const { nv, order } = this.viewer;
    if (!nv.drawBitmap || (!box && this._isEmpty)) return;
    const isWhole = all && !this._isEmpty;
    if (isWhole) nv.drawBitmap.fill(0);
    if (box) pasteBox(nv.drawBitmap, order, box, labels);
    this._upload(isWhole ? order.dims.map((n) => [0, n]) : order.boxToRas(box));
    this._isEmpty = !box && isWhole;
    this.viewer.draw({ volume: "soon" });
  }

  /** Return the target's id at a voxel in RAS order; 0 is background. */
  labelAt(ras) {
    return this.viewer.nv.drawBitmap?.[this.viewer.order.index(ras)] ?? 0;
  }

  /** Use the colours of the server's targets. */
  setTargets(targets) {
    const colours = targets.map(({ id, color }) => ({ id, color }));
    const same = JSON.stringify(colours) === JSON.stringify(this._targets);
    this._targets = colours;
    if (!same) this.colour();
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    this.colour();
  }

  setShown(areShown) {
    this.areShown = areShown;
    this.colour();
  }

  setHidden(id, isHidden) {
    if (isHidden) this.hidden.add(id);
    else this.hidden.delete(id);
    this.colour();
  }

  /** Give NiiVue the colour of every label. */
  colour() {
    const { nv } = this.viewer;
    const lut = new Uint8ClampedArray(256 * 4);
    for (const { id, color } of this._targets) {
      const shown = this.areShown && !this.hidden.has(id);
      lut.set([...rgb(color), shown ? Math.round(255 * this.opacity) : 0], 4 * id);
    }
    nv.drawOpacity = 1; // the table holds the opacity, so that the volume has it too
    nv.drawLut = { lut, labels: [] };
    nv.refreshColormaps();
    this.viewer.draw({ volume: "soon" });
  }

  /** Send a box of the drawing, in RAS order, to the graphics card; the whole would be slow. */
  _upload(box) {
    const { nv, order } = this.viewer;
    const { gl } = nv;
    const [[x, x1], [y, y1], [z, z1]] = box;
    gl.activeTexture(gl.TEXTURE0 + DRAWING_UNIT);
    gl.bindTexture(gl.TEXTURE_3D, nv.drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.pixelStorei(gl.UNPACK_ROW_LENGTH, order.dims[0]);
    gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, order.dims[1]);
    gl.pixelStorei(gl.UNPACK_SKIP_PIXELS, x);
    gl.pixelStorei(gl.UNPACK_SKIP_ROWS, y);
    gl.pixelStorei(gl.UNPACK_SKIP_IMAGES, z);
    const size = [x1 - x, y1 - y, z1 - z];
    const format = [gl.RED, gl.UNSIGNED_BYTE, nv.drawBitmap];
    gl.texSubImage3D(gl.TEXTURE_3D, 0, x, y, z, ...size, ...format);
    const skips = ["ROW_LENGTH", "IMAGE_HEIGHT", "SKIP_PIXELS", "SKIP_ROWS", "SKIP_IMAGES"];
    for (const name of skips) gl.pixelStorei(gl[`UNPACK_${name}`], 0);
  }
}

/** Return [r, g, b] of "#rrggbb". */
export function rgb(color) {
  return [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
}
