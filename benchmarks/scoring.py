"""Time to score a step of the challenge's protocol: our code, and a plain form of the rules.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --shape 100 256 256 --classes 5 --rounds 3

One step is DSC, NSD at both spacings and the next click of every class, on a made-up volume and a
prediction with small errors. The plain form follows the evaluator's code class by class on the
whole volume, with the `surface_distance` package for NSD. Both run in turns in one process; the
medians and the difference of the results are printed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils.errors import exit_on_input_error
from utils.run.flags import positive_int
from utils.validation.challenge import click_all, scores_of
from utils.volumes.components import connected_components

SPACING_XYZ = (0.8, 0.8, 2.5)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", type=positive_int, nargs=3, default=(200, 512, 512), help="(D, H, W)"
    )
    parser.add_argument("--classes", type=positive_int, default=13, help="(default: 13)")
    parser.add_argument("--rounds", type=positive_int, default=3, help="timed rounds (default: 3)")
    return parser.parse_args(argv)


def made_up_case(shape: Sequence[int], classes: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return truth and prediction (D, H, W) uint8: ellipsoids of organ size, slightly displaced."""
    rng = np.random.default_rng(seed)
    truth, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for number in range(1, classes + 1):
        centre, radii = rng.uniform(0.2, 0.8, 3), rng.uniform(0.06, 0.16, 3)
        _fill(truth, centre, radii, number)
        _fill(
            prediction, centre + rng.normal(0, 0.012, 3), radii * rng.uniform(0.85, 1.15, 3), number
        )
    return truth, prediction


def _fill(volume: np.ndarray, centre: np.ndarray, radii: np.ndarray, number: int) -> None:
    axes = np.ogrid[tuple(slice(n) for n in volume.shape)]
    parts = zip(axes, volume.shape, centre, radii, strict=True)
    volume[sum(((a / n - c) / r) ** 2 for a, n, c, r in parts) <= 1] = number


def ours(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, list]:
    """Score a step by `utils.validation.challenge`: (3, classes), and each class's next click."""
    classes = int(truth.max())
    prompts: list[list] = [[] for _ in range(classes)]
    click_all(truth, prediction, prompts, [[] for _ in range(classes)])
    return scores_of(truth, prediction, SPACING_XYZ), [own[0] if own else None for own in prompts]


def plain(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, list]:
    """Score the same step class by class on whole volumes."""
    scores, clicks = [], []
    for number in range(1, int(truth.max()) + 1):
        gt, seg = truth == number, prediction == number
        dice = 2 * (gt & seg).sum() / (gt.sum() + seg.sum())
        nsds = [
            compute_surface_dice_at_tolerance(compute_surface_distances(gt, seg, spacing), 2.0)
            for spacing in (SPACING_XYZ[::-1], SPACING_XYZ)
        ]
        scores.append((dice, *nsds))
        clicks.append(plain_click(seg, gt))
    return np.array(scores).T, clicks


def plain_click(pred, gt, max_box_voxels=60_000_000):
    """Follow the evaluator's code on whole volumes, with NumPy's global random state."""
    error = pred != gt
    if not error.any():
        return None
    labels, _ = connected_components(error)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    component = labels == np.argmax(sizes)
    low = np.argwhere(component).min(axis=0)
    shape = np.argwhere(component).max(axis=0) + 1 - low
    padding = np.maximum((shape * 0.25).astype(int), 1)
    box = np.zeros(shape + 2 * padding, np.uint8)
    inside = tuple(slice(p, p + n) for p, n in zip(padding, shape, strict=True))
    where = tuple(slice(a, a + n) for a, n in zip(low, shape, strict=True))
    box[inside] = component[where]
    pooled = box.size > max_box_voxels
    if pooled:
        box = np.pad(box, [(0, n % 2) for n in box.shape])
        corners = [box[a::2, b::2, c::2] for a in (0, 1) for b in (0, 1) for c in (0, 1)]
        box = np.maximum.reduce(corners)
    depth = ndimage.distance_transform_edt(box)
    if pooled:
        depth = depth.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    full = np.zeros(error.shape)
    full[where] = depth[inside]
    candidates = np.argwhere(full == full.max())
    state = np.random.get_state()
    np.random.seed(42)
    z, y, x = candidates[np.random.choice(len(candidates))]
    np.random.set_state(state)
    return (z, y, x), gt[z, y, x]


def timed(function: Callable, *inputs: np.ndarray) -> tuple[float, tuple]:
    """Return the seconds a call takes, and its result."""
    start = time.perf_counter()
    result = function(*inputs)
    return time.perf_counter() - start, result


def run(args: argparse.Namespace) -> dict[str, float]:
    """Time both in turns; return medians in seconds, and how scores and clicks differ."""
    case = made_up_case(args.shape, args.classes)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in tqdm(range(args.rounds), desc="rounds"):
        results = []
        for name, function in (("ours", ours), ("plain", plain)):
            taken, result = timed(function, *case)
            seconds[name].append(taken)
            results.append(result)
    (our_scores, our_clicks), (plain_scores, plain_clicks) = results
    pairs = zip(our_clicks, plain_clicks, strict=True)
    same = all(own == (tuple(map(int, place)), bool(label)) for own, (place, label) in pairs)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    difference = float(np.abs(our_scores - plain_scores).max())
    return medians | {"difference": difference, "same_clicks": float(same)}


@exit_on_input_error
def main() -> int:
    args = parse_args()
    result = run(args)
    print(f"(D, H, W) {tuple(args.shape)}, {args.classes} classes, {args.rounds} rounds, medians")
    for name in ("ours", "plain"):
        print(f"{name:6} {result[name]:7.2f} s a step   {1 / result[name]:.3f} cases/s")
    print(
        f"ratio {result['plain'] / result['ours']:.1f}, scores differ by {result['difference']:.1e}"
    )
    print("clicks are the same" if result["same_clicks"] else "CLICKS DIFFER")
    return 0 if result["same_clicks"] and result["difference"] < 1e-9 else 1


if __name__ == "__main__":
    main()
