/** Where the planes and the volume lie on the canvas, in shares of its width and height. */

/** The views: NiiVue's slice type, a name, the axis (RAS) that its slices are counted along. */
export const VIEWS = {
  axial: { type: 0, name: "Axial", axis: 2, right: 0, up: 1 },
  coronal: { type: 1, name: "Coronal", axis: 1, right: 0, up: 2 },
  sagittal: { type: 2, name: "Sagittal", axis: 0, right: 1, up: 2 },
  volume: { type: 4, name: "Volume" },
};
export const PLANES = ["axial", "coronal", "sagittal"];
export const LAYOUTS = ["four", ...PLANES, "volume"];

/**
 * Return the tiles of a layout: `{view, left, top, width, height}`.
 *
 * "four" shows all views, else the named one fills the canvas.
 */
export function tilesOf(layout) {
  if (layout !== "four") return [{ view: layout, left: 0, top: 0, width: 1, height: 1 }];
  const corners = { axial: [0, 0], volume: [0.5, 0], coronal: [0, 0.5], sagittal: [0.5, 0.5] };
  return Object.entries(corners).map(([view, [left, top]]) => {
    return { view, left, top, width: 0.5, height: 0.5 };
  });
}

/** Return tiles in the form of NiiVue's custom layout. */
export function customLayout(tiles) {
  return tiles.map(({ view, left, top, width, height }) => {
    return { sliceType: VIEWS[view].type, position: [left, top, width, height] };
  });
}
