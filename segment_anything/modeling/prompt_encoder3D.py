"""Prompts to embeddings: clicks to sparse tokens, a mask of logits to a dense grid.

Coordinates are indices into the cubic volume's array, in the order of its axes; integers are voxel
centres. Labels are 1 foreground, 0 background, -1 padding. Mask prompts are logits on the
low-resolution grid, four cells to a token along each axis (32^3 for a 128^3 volume). Positions are
random Fourier features (arXiv:2006.10739). In shapes, C is the token width and E the channels of
the image embedding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segment_anything.config import PromptConfig
from segment_anything.modeling.common import LayerNorm3d, fold_cells
from segment_anything.modeling.conv3D import DetailConv3d


class PositionEmbeddingRandom3D(nn.Module):
    """Random Fourier features of positions in the unit cube."""

    def __init__(self, num_feats: int) -> None:
        super().__init__()
        matrix = torch.randn(3, num_feats)
        self.register_buffer("positional_encoding_gaussian_matrix", matrix)

    def forward(self, coords: Tensor) -> Tensor:
        """Encode (..., 3) in [0, 1] to (..., 3 num_feats) float32, as [sin, cos, sin]."""
        matrix = self.positional_encoding_gaussian_matrix.float()
        with torch.autocast(coords.device.type, enabled=False):  # phases need every bit
            phase = 2 * math.pi * ((2 * coords.float() - 1) @ matrix)
        sin = phase.sin()
        return torch.cat([sin, phase.cos(), sin], dim=-1)

    def of_grid(self, grid_size: int, axes: tuple[int, int, int]) -> Tensor:
        """Encode the centres of a cubic grid, their coordinates ordered by ``axes``.

        Returns:
            (1, C, g, g, g).
        """
        device = self.positional_encoding_gaussian_matrix.device
        centres = (torch.arange(grid_size, device=device) + 0.5) / grid_size
        zyx = torch.meshgrid(centres, centres, centres, indexing="ij")
        coords = torch.stack([zyx[axis] for axis in axes], dim=-1)
        return self(coords).permute(3, 0, 1, 2)[None]


class PointEmbeddings3D(nn.Module):
    """What both prompt encoders share: embeddings of positions and of click labels, and checks."""

    def __init__(
        self, config: PromptConfig, *, embed_dim: int, img_size: int, grid_size: int
    ) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = embed_dim
        self.img_size = img_size
        self.grid_size = grid_size
        self.pe_layer = PositionEmbeddingRandom3D(embed_dim // 3)
        # Background, foreground; start and stop of a box, which the released weights lack.
        count = 4 if config.boxes else 2
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(count))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self._dense_pe: tuple[Tensor, int, Tensor] | None = None  # matrix, its version, encoding

    def get_dense_pe(self) -> Tensor:
        """Return the position encoding of the token grid, (1, C, g, g, g).

        The encoding is cached until the Gaussian matrix changes, by loading weights or by a move to
        another device.
        """
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        version = 0 if matrix.is_inference() else matrix._version
        cached = self._dense_pe
        if cached is None or cached[0] is not matrix or cached[1] != version:
            # SAM-Med3D swaps the first two axes of this grid, but not those of the clicks in
            # `embed_points`. Its weights were trained so: dense_pe_axes (1, 0, 2) keeps the swap.
            with torch.inference_mode(False):  # the cache may outlive inference mode
                encoding = self.pe_layer.of_grid(self.grid_size, self.config.dense_pe_axes)
            cached = self._dense_pe = (matrix, version, encoding)
        return cached[2]

    def _kinds(self) -> Tensor:
        """Return the embeddings of the labels -1, 0 and 1, and 2 and 3 with boxes: (3 or 5, C)."""
        kinds = [self.not_a_point_embed, *self.point_embeddings]
        return torch.cat([embedding.weight for embedding in kinds])

    def _batch_size(self, points: tuple[Tensor, Tensor] | None, masks: Tensor | None) -> int:
        if points is None:
            return 1 if masks is None else masks.shape[0]
        coords, labels = points
        if coords.dim() != 3 or coords.shape[-1] != 3 or labels.shape != coords.shape[:2]:
            raise ValueError(
                f"prompt encoder: got coordinates {tuple(coords.shape)} and labels "
                f"{tuple(labels.shape)}, expected (B, N, 3) and (B, N)"
            )
        if masks is not None and masks.shape[0] != coords.shape[0]:
            raise ValueError(
                f"prompt encoder: got {masks.shape[0]} masks for {coords.shape[0]} sets of points, "
                "expected one each"
            )
        return coords.shape[0]


class PromptEncoder3D(PointEmbeddings3D):
    """Turn clicks and a mask prompt into the mask decoder's inputs.

    `forward` calls `embed_points`, `stamp_clicks` and `embed_mask` in this order. The ONNX export
    calls these steps itself.
    """

    def __init__(
        self,
        config: PromptConfig,
        *,
        embed_dim: int,
        img_size: int,
        grid_size: int,
        low_res_size: int,
        detail_chans: int = 0,
    ) -> None:
        super().__init__(config, embed_dim=embed_dim, img_size=img_size, grid_size=grid_size)
        self.low_res_size = low_res_size
        self.mask_downscaling = nn.Sequential(
            *(nn.Conv3d(1, 4, kernel_size=2, stride=2), LayerNorm3d(4), nn.GELU()),
            *(nn.Conv3d(4, 16, kernel_size=2, stride=2), LayerNorm3d(16), nn.GELU()),
            nn.Conv3d(16, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        self.mask_detail = DetailConv3d(1, detail_chans) if detail_chans else None

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed prompts; every kind may be missing.

        Args:
            points: Coordinates (B, N, 3) in voxels and labels (B, N) in {1, 0, -1}.
            boxes: None; these networks have no box embedding.
            masks: (B, 1, m, m, m) logits on the low-resolution grid, m = 4 g.

        Returns:
            Sparse embeddings (B, N + 1, C), (B, 0, C) without points, and dense embeddings
            (B, E, g, g, g), with as many channels as the image embedding.

        Raises:
            ValueError: boxes were given, or coordinates, labels and masks do not fit each other.
        """
        if boxes is not None:
            raise ValueError(
                "prompt encoder: got boxes, expected points and masks only: the weights have no "
                "box corners; give a click at the box's centre and the box as a coarse mask"
            )
        batch = self._batch_size(points, masks)
        sparse = self.no_mask_embed.weight.new_zeros(batch, 0, self.embed_dim)
        if points is not None:
            sparse = self.embed_points(*points)
            if self.config.click_stamp_sigma > 0:
                masks = self.stamp_clicks(masks, *points)
        return sparse, self.embed_mask(masks, batch)

    def embed_mask(self, masks: Tensor | None, batch: int) -> Tensor:
        """Embed a mask prompt, or its absence.

        Args:
            masks: (B, 1, m, m, m) logits, or None.
            batch: B; needed if ``masks`` is None.

        Returns:
            (B, E, g, g, g), with as many channels as the image embedding. In networks with detail,
            the features of the mask's cells follow the first C channels.
        """
        if masks is not None:
            dense = self.mask_downscaling(masks)
        else:
            weight = self.no_mask_embed.weight
            dense = weight.view(1, -1, 1, 1, 1).expand(batch, -1, *[self.grid_size] * 3)
        if self.mask_detail is None:
            return dense
        if masks is None:
            masks = dense.new_zeros(batch, 1, *[self.low_res_size] * 3)
        return torch.cat([dense, fold_cells(self.mask_detail(masks)).to(dense.dtype)], dim=1)

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Embed clicks and the one padding point that SAM appends where no box is given.

        Args:
            coords: (B, N, 3) in voxels.
            labels: (B, N) in {1, 0, -1}.

        Returns:
            (B, N + 1, C).
        """
        coords = F.pad(coords, (0, 0, 0, 1))
        labels = F.pad(labels.long(), (0, 1), value=-1)
        code = self.pe_layer((coords + 0.5) / self.img_size)
        kinds = self._kinds()
        return code.to(kinds.dtype) * (labels >= 0)[..., None] + kinds[labels + 1]

    def stamp_clicks(self, masks: Tensor | None, coords: Tensor, labels: Tensor) -> Tensor:
        """Blend each click, in order, into the mask prompt as a Gaussian of confident logits.

        A click's token is one among hundreds of image tokens. It hardly changes the output of a
        decoder trained on little data; a mark in the dense mask prompt does.

        Args:
            masks: (B, 1, m, m, m) logits; None counts as zeros.
            coords: (B, N, 3) in voxels.
            labels: (B, N) in {1, 0, -1}.

        Returns:
            (B, 1, m, m, m) logits.
        """
        profiles, logits = self.stamp_profiles(coords, labels)
        if masks is None:
            masks = profiles.new_zeros(coords.shape[0], 1, *[self.low_res_size] * 3)
        for click in range(coords.shape[1]):
            z, y, x = profiles[:, click].unbind(1)
            weight = z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]
            weight = weight[:, None]
            masks = masks + weight * (logits[:, click, None, None, None, None] - masks)
        return masks

    def stamp_profiles(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return each click's Gaussian weight in the mask prompt, as factors, and its logit.

        Args:
            coords: (B, N, 3) in voxels.
            labels: (B, N) in {1, 0, -1}.

        Returns:
            (B, N, 3, m) weights along z, y and x in [0, 1], 0 for the label -1: a cell's weight is
            their product. And (B, N) logits, ``click_stamp_logit`` or its negative.
        """
        size, sigma = self.low_res_size, self.config.click_stamp_sigma
        cells = torch.arange(size, device=coords.device)
        centres = (coords + 0.5) * (size / self.img_size) - 0.5  # in cells, (B, N, 3)
        along = torch.exp(-((cells - centres[..., None]) ** 2) / (2 * sigma**2))
        logits = (2.0 * labels - 1.0) * self.config.click_stamp_logit
        return along * (labels >= 0)[..., None, None], logits
