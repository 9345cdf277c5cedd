"""Prompts that look at the image: clicks take up the features of their cells, and spread.

A click becomes a token, as in SAM (arXiv:2304.02643), which here also holds the features of the
clicked cell, and maps of the cells: a Gaussian, the likeness of each cell to the clicked ones, and
the click diffused along the image's edges. A box becomes two tokens, of its corners, and a map; the
cells outside of it spread as negative clicks do. Networks without much training find the target in
these maps; SAM's click, one token among hundreds, hardly moves them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segment_anything.config import PromptConfig
from segment_anything.modeling.boxes3D import CORNERS, box_of, core, share_inside, surroundings
from segment_anything.modeling.common import dense_last, fold_cells, wide
from segment_anything.modeling.diffusion3D import (
    CLICK_MAPS,
    click_cells,
    diffused_clicks,
    on_log_scale,
)
from segment_anything.modeling.prompt_encoder3D import PointEmbeddings3D
from segment_anything.modeling.pyramid3D import detail_of, fold_image, image_of

STAMP_SIGMA = 1.0  # of a click's Gaussian, in cells
MASK_SCALE = 4.0  # logits of the mask prompt are divided by it before tanh
UNLIKE = -1.0  # likeness where no cell is clicked


class PyramidPromptEncoder3D(PointEmbeddings3D):
    """Embed clicks, the corners of a box and a mask prompt, given the image embedding.

    Without ``PromptConfig.boxes`` there are no labels 2 and 3.
    """

    def __init__(
        self,
        config: PromptConfig,
        *,
        embed_dim: int,
        img_size: int,
        grid_size: int,
        low_res_size: int,
        detail_chans: int,
    ) -> None:
        super().__init__(config, embed_dim=embed_dim, img_size=img_size, grid_size=grid_size)
        self.low_res_size = low_res_size
        self.cells_size = low_res_size // 2
        self.point_features = nn.Linear(embed_dim + detail_chans, embed_dim)
        self.likeness = nn.Conv3d(detail_chans, detail_chans, kernel_size=1)

    def forward(
        self,
        points: tuple[Tensor, Tensor],
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        *,
        image_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Embed prompts.

        Args:
            points: Coordinates (B, N, 3) in voxels and labels (B, N) in {1, 0, -1, 2, 3}. A box has
                the labels 2 at its start and 3 at its stop (`box_points` of decoding.py).
            boxes: None; boxes are points.
            masks: (B, 1, m, m, m) logits, m = 8 g; None counts as zeros.
            image_embeddings: (B, E, g, g, g).

        Returns:
            Sparse embeddings (B, N, C), and dense ones: the maps of the cells, folded, (B, 64 P, g,
            g, g) with P = `prompt_chans`.

        Raises:
            ValueError: boxes or no points were given, or coordinates, labels, masks and embeddings
                do not fit each other.
        """
        if boxes is not None:
            raise ValueError(
                "prompt encoder: got boxes, expected points and masks only: give a box as points "
                "at its corners with the labels 2 and 3 (box_points), or in networks without "
                "prompt.boxes as a click at its centre and a coarse mask"
            )
        self._require_fit(points, masks, image_embeddings)
        coords, labels = points
        tokens = image_embeddings[:, : self.embed_dim]
        detail = dense_last(wide(detail_of(image_embeddings, self.embed_dim)))
        sparse = self.embed_points(coords, labels, tokens, detail)
        maps = [self.stamps(coords, labels)]
        if self.config.click_diffusion:
            with torch.no_grad(), torch.autocast(coords.device.type, enabled=False):
                cells = F.avg_pool3d(wide(image_of(image_embeddings)), 2)
                spread = diffused_clicks(cells, coords, labels, self.img_size)
                maps.append(on_log_scale(spread))
        if self.config.click_likeness:
            maps.append(self.likeness_maps(self.cell_directions(detail), coords, labels))
        if self.config.boxes:
            share = share_inside(box_of(coords, labels, self.img_size), self.cells_size)
            maps.append(share.unflatten(2, detail.shape[2:]).to(detail.dtype))
        if masks is None:
            masks = detail.new_zeros(coords.shape[0], 1, *[self.low_res_size] * 3)
        maps.append(fold_image(torch.tanh(wide(masks) / MASK_SCALE)))
        return sparse, fold_cells(torch.cat(maps, dim=1))

    def _require_fit(
        self, points: tuple[Tensor, Tensor], masks: Tensor | None, image_embeddings: Tensor
    ) -> None:
        """Raise a `ValueError` where the shapes of the inputs do not fit each other."""
        batch, size = self._batch_size(points, masks), self.low_res_size
        if points[0].shape[1] == 0:
            raise ValueError(
                "prompt encoder: got no points, expected one or more for each image: give one with "
                "the label -1 where there is no click"
            )
        if image_embeddings.shape[0] != batch:
            raise ValueError(
                f"prompt encoder: got {image_embeddings.shape[0]} image embeddings for {batch} "
                "sets of points, expected one each"
            )
        if masks is not None and masks.shape[1:] != (1, size, size, size):
            raise ValueError(
                f"prompt encoder: got masks {tuple(masks.shape)}, expected (B, 1, {size}, {size}, "
                f"{size})"
            )

    def embed_points(
        self, coords: Tensor, labels: Tensor, tokens: Tensor, detail: Tensor
    ) -> Tensor:
        """Embed points by position and label, and clicks by their token's and cell's features too.

        Args:
            coords: (B, N, 3) in voxels.
            labels: (B, N) in {1, 0, -1, 2, 3}.
            tokens: (B, C, g, g, g).
            detail: (B, detail_chans, 4g, 4g, 4g).

        Returns:
            (B, N, C).
        """
        code = self.pe_layer((coords + 0.5) / self.img_size)
        kinds = self._kinds()
        found = [features_at(wide(grid), coords, self.img_size) for grid in (tokens, detail)]
        features = self.point_features(torch.cat(found, dim=-1))
        is_point, is_corner = (labels >= 0)[..., None], (labels >= CORNERS[0])[..., None]
        features = features.masked_fill(is_corner, 0.0)
        return (code.to(kinds.dtype) + features) * is_point + kinds[labels.long() + 1]

    def stamps(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Return the Gaussian of the nearest positive, and negative, click: (B, 2, 4g, 4g, 4g)."""
        size = self.cells_size
        cells = torch.arange(size, device=coords.device)
        centres = (coords + 0.5) * (size / self.img_size) - 0.5  # in cells
        along = torch.exp(-((cells - centres[..., None]) ** 2) / (2 * STAMP_SIGMA**2))
        z, y, x = along.unbind(2)
        weight = z[..., None, None] * y[..., None, :, None] * x[..., None, None, :]
        kinds = [(labels == kind)[..., None, None, None] for kind in (1, 0)]
        return torch.stack([(weight * kind).amax(1) for kind in kinds], dim=1)

    def cell_directions(self, detail: Tensor) -> Tensor:
        """Return the direction of each cell's features, for `likeness_maps`: (B, c, 4g, 4g, 4g)."""
        return F.normalize(wide(self.likeness(detail)), dim=1)

    def likeness_maps(self, directions: Tensor, coords: Tensor, labels: Tensor) -> Tensor:
        """Return each cell's cosine to the positive, and negative, clicked cell it is most like.

        With a box and without a positive click, the mean over the box's middle counts as one, and
        the mean over its surroundings as a negative one.

        Returns:
            (B, 2, 4g, 4g, 4g) in [-1, 1].
        """
        flat = directions.flatten(2)
        clicked = features_at(directions, coords, self.img_size)
        if self.config.boxes:
            box = box_of(coords, labels, self.img_size)
            parts = [part(box, self.cells_size).to(flat.dtype) for part in (core, surroundings)]
            means = F.normalize(torch.cat(parts, 1) @ flat.transpose(1, 2), dim=2)
            counts = box.given[:, 0] & ~(labels == 1).any(1, keepdim=True)
            kinds = torch.where(counts, torch.tensor([1, 0], device=labels.device), -1)
            clicked, labels = torch.cat([clicked, means], 1), torch.cat([labels, kinds], 1)
        cosines = clicked @ flat  # (B, points, cells)
        kinds = [(labels == kind)[..., None] for kind in (1, 0)]
        nearest = [torch.where(kind, cosines, UNLIKE).amax(1) for kind in kinds]
        return torch.stack(nearest, dim=1).unflatten(2, directions.shape[2:])


def prompt_chans(config: PromptConfig) -> int:
    """Return the channels of a cell's prompt maps: clicks, box, and eight of the mask prompt."""
    of_clicks = 2 + CLICK_MAPS * config.click_diffusion + 2 * config.click_likeness
    return of_clicks + config.boxes + 8


def features_at(grid: Tensor, coords: Tensor, img_size: int) -> Tensor:
    """Return the features (B, N, c) of the cells of a grid (B, c, s, s, s) that hold clicks."""
    cells = click_cells(coords, grid.shape[-1], img_size)
    return grid.flatten(2).gather(2, cells[:, None].expand(-1, grid.shape[1], -1)).transpose(1, 2)
