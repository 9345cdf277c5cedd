"""From clicks to low-resolution masks: encode once, then click, decode, repeat.

`Interaction` is the click loop of training, validation and use. Coordinates are crop voxels in the
network's axis order.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling import Sam3D

#: A point label for "no click here": the prompt encoder's padding point.
NO_CLICK = -1


#: (image_embeddings, point_coords, point_labels, low_res_masks) -> low-resolution logits and IoU
Decode = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def no_mask(model: Sam3D, batch: int = 1, device: torch.device | None = None) -> Tensor:
    """Return the mask prompt before the first click: zeros (B, 1, m, m, m), as released."""
    return torch.zeros(batch, 1, *[model.config.low_res_size] * 3, device=device)


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


class Interaction:
    """The click loop on a batch of encoded crops: add a click a sample, decode, keep the masks.

    Each click is decoded with the masks of the click before it, as SAM does (arXiv:2304.02643).

    Args:
        model: the network; its `PromptConfig` says which clicks it is shown.
        image_embedding: (B, C, g, g, g), from the model's image encoder.
        decode: what decodes in place of the model, such as `InferenceEngine.decode`.

    Attributes:
        low_res_masks: (B, 1, m, m, m) float32 logits that the next click is decoded with; zeros
            before the first. May be set, to start from a mask or to follow another network.
    """

    def __init__(
        self, model: Sam3D, image_embedding: Tensor, *, decode: Decode | None = None
    ) -> None:
        self.low_res_masks = no_mask(model, len(image_embedding), image_embedding.device)
        self._embedding = image_embedding
        self._history = ClickHistory(model.config.prompt.click_memory)
        if decode is None:
            dense_pe = model.prompt_encoder.get_dense_pe()
            decode = partial(decode_points, model, dense_pe=dense_pe)
        self._decode = decode

    def click(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add one click a sample and decode.

        Args:
            coords: (B, 3).
            labels: (B,) in {1, 0, NO_CLICK}.

        Returns:
            low-resolution logits (B, 1, m, m, m), through which gradients flow, and predicted IoU
            (B, 1).
        """
        self._history.add(coords, labels)
        shown = self._history.shown()
        logits, iou = self._decode(self._embedding, *shown, self.low_res_masks)
        self.low_res_masks = logits.detach().float()
        return logits, iou


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
        low_res_masks: (B, 1, m, m, m) logits.
        dense_pe: (1, C, g, g, g), the prompt encoder's ``get_dense_pe``.

    Returns:
        low-resolution logits (B, 1, m, m, m), four cells a token along each axis, and predicted
        IoU (B, 1).
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
