"""Segmentation without training: from seeds and the image's edges, in the form of a network.

`SeedNetwork` has the parts that a `Sam3D` has, so each protocol and the predictor take it as they
take a network. Its embedding is the crop's image, averaged over a grid of cells. Its decoder turns
all prompts so far into seeds on this grid, and runs one of three methods:

* ``random-walker`` of scikit-image (Grady, IEEE TPAMI 28, 2006): a cell is inside if a random walk
  from it most probably meets an inside seed first;
* ``grow-from-seeds``, as in 3D Slicer (fast GrowCut: Zhu et al., MIAR 2014): a cell is inside if
  its cheapest path to a seed ends inside. A step costs the difference of the two intensities;
* ``ellipsoid``: the ellipsoid inscribed in the box, whatever the image; nothing without a box.

The cells at the crop's border, and those outside of a box, are outside seeds; the core of a box is
an inside seed. A click makes seeds of its cell and of the cells around it, as a brush does: from
one cell alone, the random walker finds little more than this cell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segment_anything import DecoderConfig, EncoderConfig, PromptConfig, Sam3D, SamConfig
from segment_anything.modeling.boxes3D import CORNERS
from segment_anything.modeling.diffusion3D import INTENSITIES
from utils.errors import InputError
from utils.prompts.box import PEAK_LOGIT, Box, ellipsoid_logits
from utils.run.network import NetworkFile
from utils.volumes.geometry import CropRule

INSIDE, OUTSIDE = 1, 2  # labels of seeds; 0 is no seed
BRUSH = 1  # cells on each side of a clicked cell that become seeds too
CORE = 0.5  # of a box, which the predictor has widened: the ellipsoid of this share of its extent
BETA = 130.0  # of the random walker: scikit-image's default
TOLERANCE = 1e-3  # of its equations' solution: scikit-image's default
STEP = 1e-3  # what a step costs beside the difference of intensities, so that no path is free
SURE = 1e-4  # least probability of inside and of outside


class Seeds(NamedTuple):
    """All prompts on the grid of m³ cells."""

    labels: np.ndarray  # (m, m, m): INSIDE, OUTSIDE, or 0
    ellipsoid: np.ndarray | None  # (m, m, m) logits of the box's ellipsoid; None without a box


class Method(NamedTuple):
    """A method and its grid."""

    cells: int  # m, along each axis
    #: image (m, m, m), z-normalised, and seeds -> probability (m, m, m) that a cell is inside
    inside: Callable[[np.ndarray, Seeds], np.ndarray]


def seeds_of(coords: np.ndarray, labels: np.ndarray, size: int, cells: int) -> Seeds:
    """Return the seeds of the points of one crop.

    Args:
        coords: (N, 3) in crop voxels, in the order clicked.
        labels: (N,) in {1, 0, -1, 2, 3}, as in `segment_anything.InferenceEngine.decode`.
        size: voxels along each axis of the crop.
        cells: m, along each axis of the grid.
    """
    grid = np.full((cells,) * 3, OUTSIDE, np.int8)
    grid[1:-1, 1:-1, 1:-1] = 0
    corners = [coords[labels == label] for label in CORNERS]
    ellipsoid = None
    if all(map(len, corners)):
        start, stop = (corner[-1] + 0.5 for corner in corners)
        ellipsoid = ellipsoid_logits(Box(tuple(start), tuple(stop)), size, cells)
        first, last = np.floor(start * cells / size), np.ceil(stop * cells / size)
        within = np.zeros_like(grid, bool)
        within[tuple(map(slice, first.astype(int), last.astype(int)))] = True
        grid[~within] = OUTSIDE
        core = PEAK_LOGIT * (1 - CORE**2)  # the logit at its surface
        grid[ellipsoid >= min(core, ellipsoid.max())] = INSIDE
    return Seeds(_with_clicks(grid, coords, labels, cells / size), ellipsoid)


def _with_clicks(
    grid: np.ndarray, coords: np.ndarray, labels: np.ndarray, scale: float
) -> np.ndarray:
    """Return the grid with the seeds of the clicks; the clicked cells prevail over the brush."""
    reachable = grid != OUTSIDE
    found, clicks = grid.copy(), (labels == 0) | (labels == 1)
    cells = np.floor((coords[clicks] + 0.5) * scale).astype(int).clip(0, len(grid) - 1)
    kinds = np.where(labels[clicks] == 1, INSIDE, OUTSIDE)
    for cell, kind in zip(cells, kinds, strict=True):
        spot = tuple(slice(max(0, c - BRUSH), c + BRUSH + 1) for c in cell)
        found[spot][reachable[spot]] = kind
    for cell, kind in zip(cells, kinds, strict=True):
        found[tuple(cell)] = kind
    return found


def walked(image: np.ndarray, seeds: Seeds) -> np.ndarray:
    """Return the random walker's probability of inside, (m, m, m)."""
    import warnings

    from skimage.segmentation import random_walker

    if not (seeds.labels == INSIDE).any():
        return np.zeros(image.shape)
    if not image.std():  # by which scikit-image divides
        image = image.copy()
        image.flat[0] += 1e-6
    with warnings.catch_warnings():  # that a solution within the tolerance exceeds 0 to 1
        warnings.simplefilter("ignore", UserWarning)
        inside, outside = random_walker(
            image, seeds.labels, beta=BETA, mode="cg_j", tol=TOLERANCE, return_full_prob=True
        )
    return inside / (inside + outside)


def grown(image: np.ndarray, seeds: Seeds) -> np.ndarray:
    """Return the share of the path's cost to the outside in both costs, (m, m, m); ½ is a tie."""
    from scipy.sparse.csgraph import dijkstra

    graph = _steps(image)
    costs = [
        dijkstra(graph, indices=np.flatnonzero(seeds.labels == label), min_only=True)
        for label in (INSIDE, OUTSIDE)
    ]
    inside, outside = (cost.reshape(image.shape) for cost in costs)
    return outside / (inside + outside)


def inscribed(image: np.ndarray, seeds: Seeds) -> np.ndarray:
    """Return the probabilities of the box's ellipsoid, (m, m, m); 0 without a box."""
    if seeds.ellipsoid is None:
        return np.zeros(image.shape)
    return 1 / (1 + np.exp(-seeds.ellipsoid))


METHODS = {
    "random-walker": Method(48, walked),
    "grow-from-seeds": Method(64, grown),
    "ellipsoid": Method(64, inscribed),
}


def _steps(image: np.ndarray):
    """Return the costs of the steps between the cells with a common face, sparse (m³, m³)."""
    from scipy import sparse

    numbers = np.arange(image.size).reshape(image.shape)
    costs, starts, ends = [], [], []
    for axis in range(3):
        low = [slice(None)] * 3
        high = list(low)
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        low, high = tuple(low), tuple(high)
        costs.append(np.abs(image[high] - image[low]).ravel() + STEP)
        starts.append(numbers[low].ravel())
        ends.append(numbers[high].ravel())
    places = np.concatenate(starts), np.concatenate(ends)
    one_way = sparse.csr_array((np.concatenate(costs), places), shape=(image.size,) * 2)
    return one_way + one_way.T


@dataclass(frozen=True, kw_only=True)
class GridConfig(SamConfig):
    """The configuration of a `SeedNetwork`; ``encoder`` tells the size of its crops alone."""

    cells: int

    @property
    def low_res_size(self) -> int:
        """Cells along each axis."""
        return self.cells


class Averages(nn.Module):
    """The image encoder: the crop averaged over the cells of the grid."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 1, m, m, m) of (B, 1, S, S, S)."""
        return F.adaptive_avg_pool3d(images, self.cells)


class Points(nn.Module):
    """The prompt encoder: hands the points on."""

    def get_dense_pe(self) -> Tensor:
        """Return an empty tensor: the methods have no positional encoding."""
        return torch.empty(0)

    def forward(self, points: tuple[Tensor, Tensor], boxes: None, masks: Tensor):
        """Return the points, and the previous masks, which no method uses."""
        return points, masks


class Solver(nn.Module):
    """The mask decoder: runs the method on one sample after the other."""

    def __init__(self, method: Method, size: int) -> None:
        super().__init__()
        self.method, self.size = method, size
        # In the state, so that the fingerprint of the network depends on them.
        self.register_buffer("constants", torch.tensor([BRUSH, CORE, BETA, TOLERANCE, STEP]))

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: tuple[Tensor, Tensor],
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, 1, m, m, m), and a predicted IoU of 1."""
        images = image_embeddings[:, 0].clamp(-INTENSITIES, INTENSITIES).double().numpy()
        samples = zip(images, *(each.numpy() for each in sparse_prompt_embeddings), strict=True)
        logits = [self._logits(*sample) for sample in samples]
        return torch.stack(logits)[:, None], torch.ones(len(logits), 1)

    def _logits(self, image: np.ndarray, coords: np.ndarray, labels: np.ndarray) -> Tensor:
        seeds = seeds_of(coords, labels, self.size, self.method.cells)
        return torch.logit(torch.from_numpy(self.method.inside(image, seeds)), eps=SURE).float()


class SeedNetwork(Sam3D):
    """A method of `METHODS` in the form of a network without weights; for the CPU.

    Args:
        name: of the method.
        size: S, voxels along each axis of the crops; a multiple of 16, at least 32.
    """

    def __init__(self, name: str, size: int) -> None:
        method = METHODS[name]
        config = GridConfig(
            network=name,
            encoder=EncoderConfig(img_size=size, stem="conv", detail="pyramid", detail_chans=1),
            prompt=PromptConfig(click_memory="all", boxes=True),
            decoder=DecoderConfig(form="pyramid"),  # the form of networks that take boxes
            cells=method.cells,
        )
        super().__init__(
            config,
            image_encoder=Averages(method.cells),
            prompt_encoder=Points(),
            mask_decoder=Solver(method, size),
        )


@dataclass(frozen=True)
class SeedMethod(NetworkFile):
    """A method in the place of a network file; ``network`` is its name, ``path`` its code.

    The crops are those of this project's own networks.
    """

    def open(self) -> tuple[Sam3D, CropRule]:
        """Return the method's network, and its crops.

        Raises:
            InputError: the random walker needs scikit-image, which is not installed.
        """
        if self.network == "random-walker":
            _require_scikit_image()
        rule = CropRule(fit=True)
        return SeedNetwork(self.network, rule.size), rule

    def trained_on(self) -> None:
        """Return None: the method was not trained."""
        return None


def _require_scikit_image() -> None:
    try:
        import skimage.segmentation  # noqa: F401
    except ImportError as error:
        raise InputError(
            "random-walker: found no scikit-image. Expected the package: pip install -r "
            "requirements-dev.txt, or give --method grow-from-seeds, which does without it."
        ) from error
