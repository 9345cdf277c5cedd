"""Diffusion along an image's edges: of clicks into dense maps, and of a mask's probabilities.

Neighbouring cells of a grid are joined by weights that are large inside of a structure and small
across an edge of the image. A value given at a few cells then spreads through its structure and
stops at the structure's border, as in the random walker (Grady, IEEE TPAMI 28, 2006). The equations
are solved by a fixed number of steps, so that they can be exported and captured. Grids are (B, C,
s, s, s).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling.boxes3D import box_of, core, share_inside

SHARPNESS = 13.0  # weight of an edge: exp(-SHARPNESS d^2), d the step in intensity
LEAST_WEIGHT = 1e-3  # of an edge, so that no cell is cut off
INTENSITIES = 3.0  # z-normalised intensities are clamped to this magnitude
#: Steps on grids of a quarter of the cells along each axis, of half, and of all; each grid
#: starts from the solution on the one before.
CLICK_STEPS = {4: 24, 2: 16, 1: 12}
#: Rates at which diffused clicks fade: positive and negative at long and at short range, and the
#: positive ones without fading against the crop's border.
CLICK_FADING = (0.003, 0.003, 0.06, 0.06, 0.0)
CLICK_MAPS = len(CLICK_FADING)
FAINTEST = 1e-4  # value of a diffused click that is 0 on the log scale
MASK_STEPS = 16
LEAST_SURE = 0.02  # share of its weight that a cell has where the probability is one half
#: Of the Jacobi iteration, as the acceleration assumes it; below 1.
SPECTRAL_RADIUS = 0.98


class EdgeWeights(NamedTuple):
    """Weights between each cell and its six neighbours; 0 where the grid ends."""

    neighbours: tuple[Tensor, ...]  # (B, 1, s^3): for each axis to the next cell, and before
    total: Tensor  # (B, 1, s^3), their sum
    strides: tuple[int, ...]  # how far each neighbour is away in the flattened grid


def edge_weights(image: Tensor) -> EdgeWeights:
    """Return the weights of an image (B, 1, s, s, s), z-normalised."""
    image, size = image.clamp(-INTENSITIES, INTENSITIES), image.shape[-1]
    neighbours = []
    for axis in (2, 3, 4):
        weight = torch.exp(-SHARPNESS * image.diff(dim=axis).square()) + LEAST_WEIGHT
        behind = [0, 0] * (4 - axis)
        neighbours.append(F.pad(weight, [*behind, 0, 1]).flatten(2))
        neighbours.append(F.pad(weight, [*behind, 1, 0]).flatten(2))
    strides = tuple(sign * size**power for power in (2, 1, 0) for sign in (1, -1))
    return EdgeWeights(tuple(neighbours), torch.stack(neighbours).sum(0), strides)


def solve(values: Tensor, edges: EdgeWeights, scale: Tensor, source: Tensor, steps: int) -> Tensor:
    """Approach the solution of ``values = scale * (weighted sum over the neighbours) + source``.

    Jacobi steps with Chebyshev acceleration (Golub and Varga, Numerische Mathematik 3, 1961), which
    needs the square root of the number of plain steps. In the flattened grid each neighbour is a
    shift. A shift across the grid's border reaches a cell that is no neighbour; its weight is 0.

    Args:
        values: (B, C, s^3), where to start.
        scale, source: broadcast to ``values``; where ``scale`` is 0, the source is fixed.
    """
    length, margin = values.shape[-1], max(edges.strides)
    before, relaxation = values, 1.0
    for step in range(steps):
        padded, total = F.pad(values, (margin, margin)), None
        for weight, stride in zip(edges.neighbours, edges.strides, strict=True):
            shifted = padded.narrow(-1, margin + stride, length)
            total = weight * shifted if total is None else torch.addcmul(total, weight, shifted)
        plain = torch.addcmul(source, scale, total)
        if step:
            relaxation = 1 / (1 - SPECTRAL_RADIUS**2 * relaxation / (2 if step == 1 else 4))
        before, values = values, torch.lerp(before, plain, relaxation)
    return values


def click_cells(coords: Tensor, size: int, img_size: int) -> Tensor:
    """Return the index (B, N) of the cell of a grid of ``size`` that holds each click (B, N, 3)."""
    cells = ((coords + 0.5) * (size / img_size)).floor().long().clamp(0, size - 1)
    return (cells[..., 0] * size + cells[..., 1]) * size + cells[..., 2]


def marked(cells: Tensor, chosen: Tensor, grid: Tensor) -> Tensor:
    """Return (B, 1, s^3), 1 in the ``cells`` (B, N) that are ``chosen`` (B, N), else 0.

    Args:
        grid: (B, C, s, s, s), whose size and dtype count.
    """
    size = grid.shape[-1]
    marks = grid.new_zeros(cells.shape[0], size**3 + 1)
    spare = torch.full_like(cells, size**3)  # a cell behind the grid takes the others
    marks = marks.scatter(1, torch.where(chosen, cells, spare), 1.0)
    return marks[:, None, :-1]


def diffused_clicks(image: Tensor, coords: Tensor, labels: Tensor, img_size: int) -> Tensor:
    """Diffuse clicks through an image.

    Args:
        image: (B, 1, s, s, s), the crop averaged over its cells; z-normalised. s is a multiple
            of 4.
        coords: (B, N, 3) in crop voxels.
        labels: (B, N) in {1, 0, -1, 2, 3}; -1 is no point, 2 and 3 are the corners of a box.
        img_size: voxels along each axis of the crop.

    Returns:
        (B, `CLICK_MAPS`, s, s, s) in [0, 1]: maps that are 1 at the positive or at the negative
        clicks, each at two ranges (`CLICK_FADING`), and the random walker's share of positive
        clicks, against the negative ones and the border of the crop. All cells outside of a box
        count as negative clicks, as in GrabCut (Rother et al., ACM TOG 23, 2004), and the cells in
        its middle as positive ones while the sample has no positive click.
    """
    box, maps = box_of(coords, labels, img_size), None
    is_clicked = (labels == 1).any(1)[:, None, None]
    for factor, steps in CLICK_STEPS.items():
        size = image.shape[-1] // factor
        grid = F.avg_pool3d(image, factor)
        edges, cells = edge_weights(grid), click_cells(coords, size, img_size)
        outside = (share_inside(box, size) == 0) & box.given
        negative = torch.maximum(marked(cells, labels == 0, grid), outside.to(grid.dtype))
        middle = core(box, size) & ~is_clicked & (negative == 0)
        positive = torch.maximum(marked(cells, labels == 1, grid), middle.to(grid.dtype))
        negative = negative * (1 - positive)
        source = torch.cat([positive, negative, positive, negative, positive], 1)
        free = 1 - positive - negative
        inner = free * _inside(size, free.device)  # the walker ends at the border
        free = torch.cat([free, free, free, free, inner], 1)
        if maps is None:
            maps = source
        else:
            grown = maps.unflatten(2, (size // 2,) * 3)
            grown = F.interpolate(grown, scale_factor=2.0, mode="trilinear").flatten(2)
            maps = torch.addcmul(source, grown, free)
        damped = torch.cat([edges.total + rate for rate in CLICK_FADING], 1)
        maps = solve(maps, edges, free / damped, source, steps)
    return maps.clamp(0, 1).unflatten(2, image.shape[2:])


def on_log_scale(maps: Tensor) -> Tensor:
    """Return values in [0, 1] on a log scale: 1 stays 1, and `FAINTEST` and less become 0.

    A diffused click falls by orders of magnitude within its structure, and the larger the structure
    is, the fainter the click is at its border. On a log scale a click of short range is about a
    distance along paths that avoid edges (Varadhan, Comm. Pure Appl. Math. 20, 1967).
    """
    return 1 - maps.clamp(min=FAINTEST).log() / math.log(FAINTEST)


def _inside(size: int, device: torch.device) -> Tensor:
    """Return (s^3,), 0 in the outermost layer of cells and 1 elsewhere."""
    return F.pad(torch.ones(*[size - 2] * 3, device=device), (1,) * 6).flatten()


def guided_mask(
    logits: Tensor,
    image: Tensor,
    coords: Tensor,
    labels: Tensor,
    img_size: int,
    strength: float,
) -> Tensor:
    """Smooth a mask's probabilities along the image's edges, with the clicked cells fixed.

    A cell's probability becomes the mean of the network's own and of its neighbours', with the
    weights of the edges between. The surer the network is of a cell, the more its own probability
    weighs.

    Args:
        logits: (B, 1, s, s, s).
        image: (B, 1, s, s, s), the crop averaged over its cells; z-normalised.
        coords, labels: the points, as in `diffused_clicks`. A box fixes no cell: boxes drawn by
            hand may cut off a part of the target.
        strength: weight of the network's own probability where it is 0 or 1; above 0.

    Returns:
        Logits (B, 1, s, s, s).
    """
    size = logits.shape[-1]
    edges, cells = edge_weights(image), click_cells(coords, size, img_size)
    positive = marked(cells, labels == 1, logits)
    free = 1 - torch.maximum(positive, marked(cells, labels == 0, logits))
    own = torch.sigmoid(logits).flatten(2)
    weight = strength * ((2 * own - 1).square() + LEAST_SURE)
    scale = free / (edges.total + weight)
    source = torch.addcmul(positive, scale, weight * own)
    start = torch.addcmul(positive, free, own)  # fixed cells begin with their value, and keep it
    refined = solve(start, edges, scale, source, MASK_STEPS)
    return torch.logit(refined, eps=1e-4).view_as(logits)
