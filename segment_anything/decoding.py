"""The click loop's steps: encode once, then prompt, decode, repeat. Serves training and use.

Coordinates are crop voxels in the network's axis order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling import Sam3D

#: A point label for "no click here": the prompt encoder's padding point.
NO_CLICK = -1


def low_res_size(model: Sam3D) -> int:
    """Return the edge of the network's low-resolution masks: four cells a token."""
    return 4 * model.config.encoder.grid_size


def no_mask(model: Sam3D, device: torch.device) -> Tensor:
    """Return the mask prompt before the first click, as the released recipe: (1, 1, m, m, m)."""
    return torch.zeros(1, 1, *[low_res_size(model)] * 3, device=device)


class ClickHistory:
    """The clicks given so far for a batch, and which of them the network is shown.

    Networks differ in what they were trained with (``PromptConfig.click_memory``): released
    SAM-Med3D weights see the ``"last"`` click alone and remember the rest in the mask prompt;
    ``"all"`` shows every click so far.
    """

    def __init__(self, memory: str) -> None:
        self.memory = memory
        self._coords: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, coords: Tensor, labels: Tensor) -> None:
        """Add one click a sample: coords (B, 3) and labels (B,) in {1, 0, NO_CLICK}."""
        self._coords.append(coords)
        self._labels.append(labels)

    def shown(self) -> tuple[Tensor, Tensor]:
        """Return point_coords (B, N, 3) and point_labels (B, N) for the prompt encoder."""
        first = -1 if self.memory == "last" else 0
        return torch.stack(self._coords[first:], 1), torch.stack(self._labels[first:], 1)


def decode(
    model: Sam3D, image_embedding: Tensor, history: ClickHistory, low_res_masks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run prompt encoder and mask decoder once, on the clicks that the network is shown.

    Args:
        image_embedding: (B, C, g, g, g).
        low_res_masks: (B, 1, 4g, 4g, 4g) logits of the previous step; None before the first click,
            which the released recipe feeds as zeros.

    Returns:
        low-resolution logits (B, 1, 4g, 4g, 4g) and predicted IoU (B, 1).
    """
    if low_res_masks is None:
        batch, _, g, _, _ = image_embedding.shape
        low_res_masks = image_embedding.new_zeros(batch, 1, 4 * g, 4 * g, 4 * g)
    dense_pe = model.prompt_encoder.get_dense_pe()
    return decode_points(model, image_embedding, *history.shown(), low_res_masks, dense_pe)


def decode_points(
    model: Sam3D,
    image_embedding: Tensor,
    point_coords: Tensor,
    point_labels: Tensor,
    low_res_masks: Tensor,
    dense_pe: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run prompt encoder and mask decoder once: tensors in, tensors out.

    Args:
        image_embedding: (B, C, g, g, g).
        point_coords: (B, N, 3).
        point_labels: (B, N) in {1, 0, NO_CLICK}.
        low_res_masks: (B, 1, 4g, 4g, 4g) logits.
        dense_pe: (1, C, g, g, g), the prompt encoder's ``get_dense_pe``.
    """
    sparse, dense = model.prompt_encoder(
        points=(point_coords, point_labels), boxes=None, masks=low_res_masks
    )
    return model.mask_decoder(
        image_embeddings=image_embedding,
        image_pe=dense_pe,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )


def upsample(low_res_masks: Tensor, size: int) -> Tensor:
    """Return (B, 1, size, size, size) logits: trilinear, align_corners False, as released.

    Three matrix products, one an axis: `F.interpolate` reads eight values for each that it writes.
    """
    with torch.autocast(low_res_masks.device.type, enabled=False):
        cells = torch.eye(
            low_res_masks.shape[-1], device=low_res_masks.device, dtype=low_res_masks.dtype
        )
        weights = F.interpolate(cells[None], size, mode="linear", align_corners=False)[0]
        grown = (weights.mT @ low_res_masks.flatten(3)).unflatten(3, low_res_masks.shape[3:])
        return weights.mT @ grown @ weights
