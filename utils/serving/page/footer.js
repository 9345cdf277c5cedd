/** The line at the bottom: the voxel under the pointer, and how long the last mask took. */

const element = (id) => document.getElementById(id);

export class Footer {
  constructor(page) {
    this.page = page;
  }

  /** Show the voxel under the pointer; without one, the crosshair's. */
  hover(ras) {
    this._show(ras ?? this.page.viewer.at);
  }

  moved() {
    this._show(this.page.viewer.at);
  }

  /** Show the milliseconds of a prompt's answer, and those of the network. */
  answered({ ms, network }) {
    const part = network ? `, network ${Math.round(network)} ms` : "";
    element("answer").textContent = `Mask in ${Math.round(ms)} ms${part}`;
  }

  _show(ras) {
    const { viewer, masks, list } = this.page;
    if (!viewer.order) {
      element("place").textContent = "";
      return;
    }
    const [z, y, x] = viewer.order.toFile(ras);
    const value = Number(viewer.valueAt(ras).toPrecision(5));
    const id = masks.labelAt(ras);
    const target = list.targets.find((each) => each.id === id);
    const name = target ? `   ${target.name}` : "";
    element("place").textContent = `z ${z}  y ${y}  x ${x}   value ${value}${name}`;
  }
}
