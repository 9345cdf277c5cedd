/** Colours of targets without one of their own: strong, and apart also for the colour-blind. */

const COLORS = [
  "#e69f00", "#56b4e9", "#e0457b", "#2fbf71", "#f0e442", "#3f7fe0",
  "#ff7f50", "#b07aff", "#7fd6c2", "#c98f5a", "#ff9ed2", "#a8d44a",
];

/** Return the colour of a target's id, as "#rrggbb". */
export function colorOf(id) {
  return COLORS[(id - 1) % COLORS.length];
}
