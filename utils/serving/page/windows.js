/** Grey levels: which values are black and white. CT has the usual windows, by level and width. */

const CT = [
  { name: "Soft tissue", level: 40, width: 400 },
  { name: "Liver", level: 80, width: 160 },
  { name: "Lung", level: -600, width: 1500 },
  { name: "Bone", level: 400, width: 1800 },
  { name: "Brain", level: 40, width: 80 },
  { name: "Mediastinum", level: 50, width: 350 },
];

/**
 * Return the windows to choose from, the first for a start: `{name, level, width}`.
 *
 * @param image of the server's state: `is_ct`, `low` and `high`, its smallest and largest value.
 * @param shown {low, high}, grey levels that suit the image, such as its percentiles.
 */
export function windowsOf({ is_ct: isCt, low, high }, shown) {
  const whole = { name: "All values", level: (low + high) / 2, width: high - low };
  const usual = { name: "Usual", ...levelOf(shown) };
  return isInHounsfield({ is_ct: isCt, low }) ? [...CT, whole] : [usual, whole];
}

/** Return the {low, high} that an image is first shown with; null: those that NiiVue finds. */
export function startOf(image) {
  return isInHounsfield(image) ? rangeOf(CT[0]) : null;
}

/** Return {low, high} of {level, width}. */
export function rangeOf({ level, width }) {
  return { low: level - width / 2, high: level + width / 2 };
}

/** Challenge files hold CT as 0 to 255. */
function isInHounsfield({ is_ct: isCt, low }) {
  return isCt && low < -100;
}

/** Return {level, width} of {low, high}. */
export function levelOf({ low, high }) {
  return { level: (low + high) / 2, width: high - low };
}
