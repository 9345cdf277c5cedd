"""Score scribbles and lassos, as the server takes them, against plain clicks on the same targets.

    python benchmarks/drawings.py --checkpoint student.pth --val-datas tree/*/*

Of each folder, which holds imagesTr and labelsTr, one case is taken. The drawings are made from the
true mask. A scribble is the skeleton of the target's largest slice, without its ends, 3 voxels
thick. A lasso is that slice, a little too small or too large. Later ones are drawn on the largest
error after one click. Needs scikit-image.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).parent.parent))

import utils.run.threads  # noqa: F401  before NumPy and torch

# isort: split
from benchmarks.measure import json_file, table, write_json
from utils.errors import InputError, exit_on_input_error
from utils.files.images import read_image
from utils.prediction.predictor import Predictor
from utils.prompts.click_method import challenge_click
from utils.results.metrics import dsc, nsd
from utils.run.network import open_network
from utils.serving.drawings import Drawing, checked_drawing
from utils.serving.scan import IntensityFlags, open_scan
from utils.serving.session import Session
from utils.volumes.components import component_sizes, connected_components

MAX_VOXELS = 2**30
OFF_SHARE = 0.05  # of the square root of a slice's area, by which a lasso is off


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--val-datas", type=Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--json", type=json_file, help="also write the numbers to this file")
    return parser.parse_args(argv)


def largest_part(mask: np.ndarray) -> np.ndarray:
    """Return the largest component of a mask (D, H, W) bool."""
    labels, count = connected_components(mask)
    return labels == 1 + np.argmax(component_sizes(labels, count)[1:])


def largest_slice(mask: np.ndarray) -> np.ndarray:
    """Return the largest component on the slice with most voxels, (D, H, W) bool."""
    slice_only = np.zeros_like(mask)
    z = int(mask.sum(axis=(1, 2)).argmax())
    slice_only[z] = mask[z]
    return largest_part(slice_only)


def scribble_on(outline: np.ndarray) -> np.ndarray:
    """Return a curve along the middle of a region on one slice, (D, H, W) bool."""
    from skimage.morphology import skeletonize

    (z,) = np.flatnonzero(outline.any(axis=(1, 2)))
    voxels = np.argwhere(largest_part(skeletonize(outline[z])[None])[0])
    tree = cKDTree(voxels)
    graph = tree.sparse_distance_matrix(tree, 1.5).tocsr()
    end = int(np.argmax(dijkstra(graph, indices=0)))
    along, before = dijkstra(graph, indices=end, return_predecessors=True)
    path = [int(np.argmax(along))]
    while path[-1] != end:
        path.append(int(before[path[-1]]))
    cut = len(path) // 10 if len(path) > 5 else 0
    thin = np.zeros_like(outline)
    thin[z][tuple(voxels[path[cut : len(path) - cut]].T)] = True
    return ndimage.binary_dilation(thin, np.ones((1, 3, 3))) & outline


def lasso_around(outline: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a region on one slice, (D, H, W) bool, filled, and too small or too large."""
    (z,) = np.flatnonzero(outline.any(axis=(1, 2)))
    off = max(1, round(OFF_SHARE * np.sqrt(outline.sum())))
    change = ndimage.binary_erosion if rng.random() < 0.5 else ndimage.binary_dilation
    drawn = np.zeros_like(outline)
    drawn[z] = ndimage.binary_fill_holes(change(outline[z], iterations=off))
    return drawn if drawn.any() else outline


def drawing(drawn: np.ndarray, is_foreground: bool, is_lasso: bool) -> Drawing:
    """Return voxels of the image as the server gets them."""
    kind = {"is_foreground": is_foreground, "is_lasso": is_lasso}
    return checked_drawing(drawn, None, drawn.shape, **kind)


def answers(session: Session, truth: np.ndarray, rng: np.random.Generator) -> Iterator[tuple]:
    """Yield each way to prompt with the mask that it gives."""

    def middle_of(given: Drawing) -> np.ndarray:
        session.add(1, given.click_in(given.drawn))
        return session.labels == 1

    def drawn(given: Drawing) -> np.ndarray:
        session.draw(1, given)
        return session.labels == 1

    outline = largest_slice(truth)
    first = (
        drawing(scribble_on(outline), True, False),
        drawing(lasso_around(outline, rng), True, True),
    )
    for name, given in zip(("scribble", "lasso"), first, strict=True):
        for way, prompt in ((f"click in the {name}'s middle", middle_of), (name, drawn)):
            session.forget()
            yield way, prompt(given)
    session.forget()
    mask = np.zeros_like(truth)
    for number in range(1, 4):
        click = challenge_click(mask, truth)
        if click is not None:
            session.add(1, click)
        mask = session.labels == 1
        if number == 1:
            error = mask != truth
        yield f"clicks: {number}", mask
    if not error.any():
        return
    while session.history.undo_steps > 1:
        session.undo()
    outline = largest_slice(largest_part(error))
    missing = bool(truth[outline].any())
    later = drawing(scribble_on(outline), missing, False), drawing(outline, missing, True)
    ways = (("click in a scribble's middle", middle_of, later[0]),
            ("scribble", drawn, later[0]), ("lasso", drawn, later[1]))  # fmt: skip
    for name, prompt, given in ways:
        yield f"click, then {name}", prompt(given)
        session.undo()


def run(args: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Return DSC and NSD of each way, of all targets."""
    session = Session(Predictor(*open_network(args.checkpoint)))
    scores: dict[str, list[list[float]]] = {}
    for folder in sorted(args.val_datas):
        labels = sorted((folder / "labelsTr").glob("*.nii.gz"))
        if not labels:
            raise InputError(f"{folder}: found no labelsTr/*.nii.gz. Expected a prepared folder.")
        path = labels[len(labels) // 2]
        truth = read_image(path, MAX_VOXELS).array > 0
        scan = open_scan(folder / "imagesTr" / path.name, IntensityFlags(), MAX_VOXELS)
        session.set_scan(scan)
        for name, mask in answers(session, truth, np.random.default_rng(int(truth.sum()))):
            spacing = scan.volume.spacing_zyx
            scores.setdefault(name, []).append([dsc(truth, mask), nsd(truth, mask, spacing)])
    return scores


@exit_on_input_error
def main() -> None:
    args = parse_args()
    scores = run(args)
    rows = [
        (name, len(each), *(f"{mean:.3f}" for mean in np.mean(each, axis=0)))
        for name, each in scores.items()
    ]
    print(table(("prompts", "targets", "DSC", "NSD"), rows))
    if args.json:
        write_json(args.json, scores)


if __name__ == "__main__":
    main()
