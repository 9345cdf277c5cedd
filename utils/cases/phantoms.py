"""Phantoms: synthetic cases in the challenge's format, to try the scripts without patient data.

Two kinds alternate, each under a data set's key of ``CVPR25.json`` and with its class ids:

* ``CT_AMOS_phantom_0001``: an abdomen with a large organ (liver), middle ones (spleen, kidneys), a
  small gland (adrenal), a thin curved vessel (aorta with its two branches) and an organ little
  brighter than its surroundings (pancreas), beside unlabelled organs of similar brightness: bowel,
  muscle, stomach, vena cava, spine. Thick slices.
* ``MR_Heart_ACDC_phantom_0002``: a short-axis heart, with a crescent (right ventricle) beside a
  thin wall (myocardium) around the left ventricle, among fat, liver and vessels. Thicker slices.

Organs differ in size and form, so that no ball of one radius about a click covers them. Shapes are
ellipsoids, tubes and plates bent by smooth random fields; pose, size, contrast, noise, bias and
spacing differ from case to case. Axes grow as in the challenge's files: z to superior, y to
posterior, x to the patient's left. Scores on phantoms do not predict scores on patients.

    python -m utils.cases.phantoms --out phantoms --cases 3
"""

import argparse
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from utils.errors import InputError, exit_on_input_error, printable
from utils.files.atomic import atomic_path
from utils.run.flags import positive_int, seed

#: Class ids, as in the class table.
CT_CLASSES = {
    "Spleen": 1,
    "Right kidney": 2,
    "Left kidney": 3,
    "Liver": 6,
    "Aorta": 8,
    "Pancreas": 10,
    "Left adrenal gland": 12,
}
MR_CLASSES = {"Right ventricle cavity": 1, "Myocardium": 2, "Left ventricle cavity": 3}

#: Maps arrays of canvas coordinates (z, y, x) to numbers, below 1 inside the shape.
Shape = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Phantom(NamedTuple):
    """One case: ``image`` and ``label`` (D, H, W) uint8, spacing (x, y, z) in mm."""

    image: np.ndarray
    label: np.ndarray
    spacing_xyz: np.ndarray


def write_phantoms(folder: Path, num_cases: int, seed: int, *, first_number: int = 1) -> list[Path]:
    """Write ``num_cases`` phantoms as NPZ files with ``imgs``, ``gts`` and ``spacing``.

    Abdomens also have ``boxes``. Hearts have none, like half of the challenge's MR cases. A case
    depends only on ``seed`` and its number, which its name holds: give training and validation
    cases different numbers. A file that already holds the case is left unchanged.

    Returns:
        The files, in the order of their numbers.
    """
    if num_cases < 1 or seed < 0 or first_number < 0:
        raise InputError(
            f"{num_cases} phantoms from number {first_number} with seed {seed} cannot be made. "
            "Expected at least one case and no negative number: correct the numbers."
        )
    paths = []
    for number in range(first_number, first_number + num_cases):
        rng = np.random.default_rng([seed, number])
        name, make = ("CT_AMOS", ct_phantom) if number % 2 else ("MR_Heart_ACDC", mr_phantom)
        path = Path(folder) / f"{name}_phantom_{number:04d}.npz"
        phantom = make(rng)
        arrays = {"imgs": phantom.image, "gts": phantom.label, "spacing": phantom.spacing_xyz}
        if make is ct_phantom:
            arrays["boxes"] = np.array(boxes_of(phantom.label, rng), dtype=object)
        _write_if_new(path, arrays)
        paths.append(path)
    return paths


def ct_phantom(rng: np.random.Generator) -> Phantom:
    """Return an abdomen with the classes of `CT_CLASSES`."""
    shape = (int(rng.integers(30, 41)), int(rng.integers(96, 113)), int(rng.integers(96, 113)))
    in_plane = rng.uniform(1.6, 2.0)
    spacing_xyz = np.round([in_plane, in_plane, rng.uniform(3.6, 4.4)], 3)
    canvas = _Canvas(rng, shape, spacing_xyz, bend=0.07)
    brightness = rng.normal(0, 5)  # of the contrast agent, shared by the organs
    liver, spleen, kidney = (level + brightness + rng.normal(0, 4) for level in (152, 164, 188))

    canvas.fill(_ellipsoid((0, 0, 0), (9, 0.97, 0.97)), 48)  # fat
    canvas.fill(_ellipsoid((0, -0.02, 0), (9, 0.89, 0.89)), 132)  # muscle wall
    canvas.fill(_ellipsoid((0, -0.04, 0), (9, 0.8, 0.8)), 62)  # fat between the organs
    for _ in range(14):  # bowel, in front and below
        centre = rng.uniform((-0.95, -0.6, -0.3), (0.2, 0.3, 0.65))
        canvas.fill(_ellipsoid(centre, rng.uniform(0.09, 0.2, 3)), rng.uniform(115, 165))
    for side in (-1, 1):  # the muscles beside the spine
        canvas.fill(_ellipsoid((0, 0.6, 0.25 * side), (9, 0.2, 0.2)), 138)
    canvas.fill(_ellipsoid((0, 0.62, 0), (9, 0.17, 0.15)), 205)  # spine
    canvas.fill(_ellipsoid((0, 0.34, -0.1), (9, 0.07, 0.08)), 165 + brightness)  # vena cava
    canvas.fill(_vary(rng, (0.4, -0.33, 0.3), (0.42, 0.24, 0.26)), spleen - 8)  # stomach
    _paint_pancreas(canvas, 130 + brightness)
    canvas.fill(_aorta(canvas), 190 + brightness, CT_CLASSES["Aorta"])
    canvas.fill(_adrenal(canvas), 128 + brightness, CT_CLASSES["Left adrenal gland"])

    liver_right = _vary(rng, (0.3, -0.06, -0.42), (0.6, 0.5, 0.34))
    liver_left = _vary(rng, (0.42, -0.32, -0.08), (0.34, 0.26, 0.4))
    cavity = _ellipsoid((0, -0.02, 0), (9, 0.86, 0.86))
    liver_shape = _both(_either(liver_right, liver_left), cavity)
    canvas.fill(liver_shape, liver, CT_CLASSES["Liver"])
    vessel = _ellipsoid(rng.uniform((0.2, -0.2, -0.5), (0.4, 0.1, -0.3)), (0.07, 0.06, 0.2))
    canvas.fill(vessel, liver + 22, label=None)
    canvas.fill(_ellipsoid((0.02, -0.42, -0.36), rng.uniform(0.1, 0.15, 3)), 98)  # gall bladder
    spleen_shape = _vary(rng, (0.35, 0.24, 0.58), (0.42, 0.4, 0.15))
    canvas.fill(_both(spleen_shape, cavity), spleen, CT_CLASSES["Spleen"])
    for side, organ in ((-1, "Right kidney"), (1, "Left kidney")):
        z, y, x = rng.normal((-0.22 + 0.08 * side, 0.41, 0.38 * side), 0.03)
        canvas.fill(_vary(rng, (z, y, x), (0.38, 0.16, 0.15)), kidney, CT_CLASSES[organ])
        hilum = _ellipsoid((z, y - 0.03, x - 0.13 * side), (0.15, 0.08, 0.09))
        canvas.fill(hilum, 75)
    return canvas.finish(noise=rng.uniform(9, 14))


def mr_phantom(rng: np.random.Generator) -> Phantom:
    """Return a short-axis heart with the classes of `MR_CLASSES`."""
    shape = (int(rng.integers(14, 19)), int(rng.integers(96, 113)), int(rng.integers(96, 113)))
    in_plane = rng.uniform(1.3, 1.6)
    spacing_xyz = np.round([in_plane, in_plane, rng.uniform(5.5, 7.0)], 3)
    canvas = _Canvas(rng, shape, spacing_xyz, bend=0.05)
    blood, muscle, fat = rng.normal(185, 10), rng.normal(92, 7), rng.uniform(120, 140)
    y, x = rng.uniform(-0.15, 0.1), rng.uniform(-0.02, 0.2)
    base = rng.uniform(0.5, 0.62)  # of the chambers, which end there in a plane
    tilt_y, tilt_x = rng.uniform(-0.12, 0.12, 2)  # of the long axis, along z
    size, wall = rng.uniform(0.2, 0.32), rng.uniform(5, 7) / canvas.half_mm[2]
    crescent = wall + rng.uniform(0.16, 0.24)  # from the left ventricle to the right one's far side

    def heart(centre: Sequence[float], radii: Sequence[float]) -> Shape:
        upright = _ellipsoid((centre[0], y + centre[1], x + centre[2]), radii)
        return lambda pz, py, px: upright(pz, py - tilt_y * pz, px - tilt_x * pz)

    def chamber(centre: Sequence[float], radii: Sequence[float]) -> Shape:
        return _both(heart(centre, radii), lambda pz, _y, _x: 2.0 * (pz > base))

    canvas.fill(_ellipsoid((0, 0, 0), (9, 0.98, 0.96)), 172)  # fat under the skin
    canvas.fill(_ellipsoid((0, 0, 0), (9, 0.88, 0.88)), 100)  # chest wall
    for side in (-1, 1):
        canvas.fill(_ellipsoid((0.1, 0.08, 0.5 * side), (1.6, 0.62, 0.34)), 28)  # lungs
    liver = _ellipsoid((-1.1, 0.1, -0.5), (0.9, 0.6, 0.55))
    canvas.fill(liver, rng.uniform(105, 130))
    canvas.fill(_ellipsoid((0, 0.66, 0.2), (9, 0.1, 0.1)), blood - 10)  # aorta
    canvas.fill(_ellipsoid((0, 0.72, -0.02), (9, 0.13, 0.16)), 120)  # spine
    canvas.fill(heart((0, -0.02, -0.08), (0.98, size + 0.27, size + 0.36)), fat)

    right = chamber((0.05, -0.04, -0.75 * size), (0.72, size + 0.12, 0.25 * size + crescent))
    canvas.fill(right, blood - rng.uniform(0, 12), MR_CLASSES["Right ventricle cavity"])
    outer = chamber((0, 0, 0), (0.84, size + wall, size + wall))
    canvas.fill(outer, muscle, MR_CLASSES["Myocardium"])
    inner = chamber((0.03, 0, 0), (0.79, size, size))
    canvas.fill(inner, blood, MR_CLASSES["Left ventricle cavity"])
    for angle in rng.uniform(0, 2 * np.pi, 2):  # papillary muscles, part of the cavity
        spot = (-0.1, 0.6 * size * np.sin(angle), 0.6 * size * np.cos(angle))
        canvas.fill(heart(spot, (0.3, 0.05, 0.05)), muscle + 15, label=None)
    return canvas.finish(noise=rng.uniform(9, 15))


def _paint_pancreas(canvas: "_Canvas", level: float) -> None:
    """Paint a curved organ, thick at its right end, among bowel that is little darker than it."""
    rng = canvas.rng
    half_z, half_y, half_x = canvas.half_mm
    right, left = rng.normal((-0.14, 0.38), 0.02)
    (low, high), front = rng.normal((-0.34, 0.16), 0.04), rng.normal(0.12, 0.02)
    head, tail = rng.uniform(8, 10), rng.uniform(5, 6.5)  # radii in mm

    def course(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        share = np.clip((x - right) / (left - right), 0, 1)
        return low + (high - low) * share, front - 0.15 * np.sin(np.pi * share), share

    def thick_by(more_mm: float) -> Shape:
        def field(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
            cz, cy, share = course(x)
            beyond = x - np.clip(x, right, left)
            squares = ((z - cz) * half_z) ** 2 + ((y - cy) * half_y) ** 2 + (beyond * half_x) ** 2
            return squares / (head + (tail - head) * share + more_mm) ** 2

        return field

    around = level - rng.uniform(13, 18)
    canvas.fill(thick_by(6), around)
    for x in np.linspace(right, left, 7):
        cz, cy, _ = course(x)
        centre = np.array((cz, cy, x)) + rng.normal(0, 0.06, 3)
        canvas.fill(_ellipsoid(centre, rng.uniform(0.1, 0.17, 3)), around + rng.normal(0, 2))
    canvas.fill(thick_by(0), level, CT_CLASSES["Pancreas"])


def _aorta(canvas: "_Canvas") -> Shape:
    """Return a winding vessel of 6 to 8 mm that parts into two branches below."""
    rng = canvas.rng
    _, half_y, half_x = canvas.half_mm
    radius_mm, parting, phase = rng.uniform(3.2, 3.9), rng.uniform(-0.6, -0.4), rng.uniform(0, 6.3)

    def field(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        below = np.maximum(parting - z, 0)
        cy, cx = 0.35 - 0.25 * below, 0.08 + 0.04 * np.sin(3 * z + phase)
        aside = np.abs(x - cx) - 0.45 * below  # from the nearer branch
        return (((y - cy) * half_y) ** 2 + (aside * half_x) ** 2) / radius_mm**2

    return field


def _adrenal(canvas: "_Canvas") -> Shape:
    """Return a small gland of two plates that meet in front, like the letter V."""
    rng = canvas.rng
    half_x = canvas.half_mm[2]
    cz, cy, cx = rng.normal((0.3, 0.17, 0.26), 0.02)
    half_thickness_mm, slope = rng.uniform(2.6, 3.2), rng.uniform(0.4, 0.6)
    extent = _ellipsoid((cz, cy, cx), (rng.uniform(0.18, 0.24), 0.1, 1))

    def plates(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        aside = np.abs(x - cx) - slope * (y - cy + 0.1)
        return (aside * half_x / half_thickness_mm) ** 2

    return _both(plates, extent)


class _Canvas:
    """A volume to paint shapes into; its coordinates run from -1 to 1 along each axis.

    Shapes are given in straight coordinates. The canvas bends all of them, by at most about
    ``bend`` in either direction, and roughens the surface of labelled ones.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int, int],
        spacing_xyz: np.ndarray,
        bend: float,
    ) -> None:
        self.rng, self.shape, self.spacing_xyz = rng, shape, spacing_xyz
        self.half_mm = np.array(shape) * spacing_xyz[::-1] / 2  # mm per unit of z, y, x
        self.image = np.full(shape, 6, dtype=np.float32)  # air
        self.label = np.zeros(shape, dtype=np.uint8)
        straight = np.meshgrid(
            *(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True
        )
        self.zyx = [axis + bend / 2 * _smooth_field(rng, shape, 4) for axis in straight]

    def fill(self, shape: Shape, level: float, label: int | None = 0) -> None:
        """Paint ``shape`` with an intensity and a class id; None leaves the label unchanged."""
        field = shape(*self.zyx)
        if label:
            field = field + 0.1 * _smooth_field(self.rng, self.shape, 9)
        inside = field < 1
        self.image[inside] = level
        if label is not None:
            self.label[inside] = label

    def finish(self, noise: float) -> Phantom:
        """Add blur, a bias field and noise; return the case."""
        image = ndimage.gaussian_filter(self.image, (0.3, 0.7, 0.7))
        image *= 1 + 0.07 * _smooth_field(self.rng, self.shape, 3)
        grain = self.rng.standard_normal(self.shape, dtype=np.float32)
        image += noise * 1.6 * ndimage.gaussian_filter(grain, (0, 0.6, 0.6))
        image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        return Phantom(image, self.label, self.spacing_xyz)


def _ellipsoid(centre_zyx: Sequence[float], radii_zyx: Sequence[float]) -> Shape:
    (cz, cy, cx), (rz, ry, rx) = centre_zyx, radii_zyx

    def field(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return ((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2

    return field


def _vary(
    rng: np.random.Generator, centre_zyx: Sequence[float], radii_zyx: Sequence[float]
) -> Shape:
    """Return the ellipsoid moved, scaled and turned a little in the axial plane."""
    cz, cy, cx = rng.normal(centre_zyx, 0.04)
    rz, ry, rx = np.array(radii_zyx) * rng.uniform(0.85, 1.15, 3)
    upright = _ellipsoid((0, 0, 0), (rz, ry, rx))
    angle = rng.normal(0, 0.25)
    sine, cosine = np.sin(angle), np.cos(angle)

    def field(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        y, x = y - cy, x - cx
        return upright(z - cz, cosine * y - sine * x, sine * y + cosine * x)

    return field


def _either(a: Shape, b: Shape) -> Shape:
    return lambda z, y, x: np.minimum(a(z, y, x), b(z, y, x))


def _both(a: Shape, b: Shape) -> Shape:
    return lambda z, y, x: np.maximum(a(z, y, x), b(z, y, x))


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], nodes: int) -> np.ndarray:
    """Return a smooth random field of unit variance from ``nodes`` random values an axis."""
    field = rng.standard_normal((nodes, nodes, nodes)).astype(np.float32)
    for length in shape:  # each pass resamples the first axis and moves it to the end
        places = np.linspace(0, nodes - 1, length, dtype=np.float32)[:, None]
        weights = np.exp(-((places - np.arange(nodes, dtype=np.float32)) ** 2))
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        field = np.tensordot(field, weights, axes=(0, 1))
    return field


def boxes_of(label: np.ndarray, rng: np.random.Generator) -> list[dict[str, int]]:
    """Return the box of every class, in the format of challenge files.

    Its sides along y and x are those of the middle labelled slice, each up to two voxels wider.
    """
    boxes = []
    for value in np.unique(label)[1:]:
        slices = np.flatnonzero((label == value).any(axis=(1, 2)))
        middle = int(slices[len(slices) // 2])
        box = {"z_min": int(slices[0]), "z_max": int(slices[-1]), "z_mid": middle}
        for axis, name in ((1, "y"), (0, "x")):
            rows = np.flatnonzero((label[middle] == value).any(axis=axis))
            low, high = rows[0] - rng.integers(3), rows[-1] + rng.integers(3)
            box[f"z_mid_{name}_min"] = int(max(low, 0))
            box[f"z_mid_{name}_max"] = int(min(high, label.shape[2 - axis] - 1))
        boxes.append(box)
    return boxes


def _write_if_new(path: Path, arrays: dict[str, np.ndarray]) -> None:
    if path.exists() and _holds(path, arrays):
        return
    if zipfile.is_zipfile(path):  # complete, unlike a phantom that was cut short
        raise InputError(
            f"{path}: holds another case than this phantom, which would replace it. Expected a "
            "folder for phantoms alone: name another."
        )
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _holds(path: Path, arrays: dict[str, np.ndarray]) -> bool:
    """Tell whether a file holds these arrays; boxes, which follow from the rest, are not read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return set(stored) == set(arrays) and all(
                np.array_equal(stored[key], array)
                for key, array in arrays.items()
                if array.dtype != object
            )
    except (OSError, ValueError, zipfile.BadZipFile):
        return False  # incomplete or another file: written again


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--cases", type=positive_int, default=3, help="files to write (default: 3)")
    parser.add_argument(
        "--seed", type=seed, default=2, help="0 and 1 give the cases of the demo (default: 2)"
    )
    return parser.parse_args(argv)


@exit_on_input_error
def main() -> None:
    args = parse_args()
    for path in write_phantoms(args.out, args.cases, args.seed):
        print(printable(str(path)))


if __name__ == "__main__":
    main()
