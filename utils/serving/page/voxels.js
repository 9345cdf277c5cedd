/**
 * Voxel indices of two orders: the file's, which the server uses, and RAS, which NiiVue uses.
 *
 * `ras` is [x, y, z] in NiiVue's order: towards the patient's right, front and head.
 * `zyx` is [z, y, x] of the file's array, from 0.
 */

export class VoxelOrder {
  /**
   * @param permRAS NiiVue's three numbers: +-(file axis + 1) for each RAS axis.
   * @param dimsRAS three numbers of voxels, in RAS order.
   */
  constructor(permRAS, dimsRAS) {
    this.dims = [...dimsRAS];
    this.axes = [...permRAS].map((p) => ({ file: Math.abs(p) - 1, flipped: p < 0 }));
  }

  /** Return the file's voxel [z, y, x] of a voxel in RAS order. */
  toFile(ras) {
    const xyz = [0, 0, 0];
    this.axes.forEach(({ file, flipped }, axis) => {
      xyz[file] = flipped ? this.dims[axis] - 1 - ras[axis] : ras[axis];
    });
    return xyz.reverse();
  }

  /** Return the voxel in RAS order of the file's voxel [z, y, x]. */
  toRas(zyx) {
    return this.axes.map(({ file, flipped }, axis) => {
      const index = zyx[2 - file];
      return flipped ? this.dims[axis] - 1 - index : index;
    });
  }

  /** Return the box in RAS order, [[x0, x1], [y0, y1], [z0, z1]], of a half-open box in zyx. */
  boxToRas(box) {
    return this.axes.map(({ file, flipped }, axis) => {
      const [start, stop] = box[2 - file];
      return flipped ? [this.dims[axis] - stop, this.dims[axis] - start] : [start, stop];
    });
  }

  /** Return the steps in an array in RAS order for one voxel along the file's z, y and x. */
  steps() {
    const strides = [1, this.dims[0], this.dims[0] * this.dims[1]];
    const steps = [0, 0, 0];
    this.axes.forEach(({ file, flipped }, axis) => {
      steps[2 - file] = flipped ? -strides[axis] : strides[axis];
    });
    return steps;
  }

  /** Return the place of a voxel in an array in RAS order. */
  index(ras) {
    return ras[0] + this.dims[0] * (ras[1] + this.dims[1] * ras[2]);
  }
}

/**
 * Copy labels of a box in the file's order into an array in RAS order.
 *
 * @param target one byte a voxel, RAS order, x fastest.
 * @param box [[z0, z1], [y0, y1], [x0, x1]], half-open.
 * @param labels one byte a voxel of the box, the file's order, x fastest.
 */
export function pasteBox(target, order, box, labels) {
  const [[z0, z1], [y0, y1], [x0, x1]] = box;
  const [stepZ, stepY, stepX] = order.steps();
  const first = order.index(order.toRas([z0, y0, x0]));
  let from = 0;
  for (let z = 0; z < z1 - z0; z++) {
    for (let y = 0; y < y1 - y0; y++) {
      let to = first + z * stepZ + y * stepY;
      for (let x = 0; x < x1 - x0; x++) {
        target[to] = labels[from++];
        to += stepX;
      }
    }
  }
}
