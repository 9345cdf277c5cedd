"""From clicks to low-resolution masks: encode once, then click, decode, repeat.

`Interaction` is the click loop of training and validation. Shapes: B samples, N clicks, E channels
of the image embedding, g tokens along each axis, and m cells of the low-resolution masks (4 g, or
8 g in networks of the form pyramid and in refined ones).
Coordinates are indices into the crop's array, in the order of its axes and counted from 0;
fractions are allowed. The axes of crops point to the patient's right, anterior and superior.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything.config import SamConfig
from segment_anything.modeling import PyramidPromptEncoder3D, Sam3D
from segment_anything.modeling.boxes3D import CORNERS
from segment_anything.modeling.common import upsample, wide
from segment_anything.modeling.diffusion3D import guided_mask
from segment_anything.modeling.pyramid3D import image_of

#: The label of a padding point, which the prompt encoder does not treat as a click.
NO_CLICK = -1

#: (image_embeddings, point_coords, point_labels, low_res_masks) -> low-resolution logits and IoU
Decode = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def no_mask(model: Sam3D, batch: int = 1, device: torch.device | None = None) -> Tensor:
    """Return the mask prompt before the first click: zeros (B, 1, m, m, m), as released."""
    return torch.zeros(batch, 1, *[model.config.low_res_size] * 3, device=device)


def require_boxes(config: SamConfig) -> None:
    """Raise a `ValueError` for a box if the network takes none."""
    if not config.prompt.boxes:
        raise ValueError(
            f"network '{config.network}': got a box, expected a network with prompt.boxes: give a "
            "click in the box's middle and the box as a mask"
        )


def box_points(boxes: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points that tell a network with ``PromptConfig.boxes`` a box: its two corners.

    In such a network these two points come before the clicks, with the label `NO_CLICK` in samples
    without a box. So a sample has equally many points with and without a box.

    Args:
        boxes: (B, 2, 3) start and stop in the crops' voxels; half-open, fractions are allowed.
        given: (B,) bool, False for samples without a box.

    Returns:
        point_coords (B, 2, 3) of the corners, as indices into the crop's array, in which voxel i
        reaches from i - 0.5 to i + 0.5; and point_labels (B, 2), 2 at the start and 3 at the stop.
    """
    labels = torch.tensor(CORNERS, device=boxes.device).expand(len(boxes), 2)
    return boxes - 0.5, torch.where(given[:, None], labels, NO_CLICK)


def first_decoded(memory: str) -> int:
    """Return the index of the first click that is decoded, by ``PromptConfig.click_memory``."""
    return -1 if memory == "last" else 0


class ClickHistory:
    """All clicks on a batch so far, its boxes, and the selection of them that is decoded.

    A network is trained with one of two rules (``PromptConfig.click_memory``). With ``"last"``, the
    rule of the released SAM-Med3D, only the last click is decoded, and the mask prompt carries the
    effect of the earlier clicks. With ``"all"``, every click so far is decoded.

    Attributes:
        boxes: the points of `box_points`, which are decoded before the clicks; None: no points.
    """

    def __init__(self, memory: str) -> None:
        self.memory = memory
        self.boxes: tuple[Tensor, Tensor] | None = None
        self._coords: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, coords: Tensor, labels: Tensor) -> None:
        """Add one click a sample: coords (B, 3) and labels (B,) in {1, 0, NO_CLICK}."""
        self._coords.append(coords)
        self._labels.append(labels)

    def decoded(self) -> tuple[Tensor, Tensor]:
        """Return the points to decode: point_coords (B, N, 3) and point_labels (B, N)."""
        first = first_decoded(self.memory)
        coords, labels = torch.stack(self._coords[first:], 1), torch.stack(self._labels[first:], 1)
        if self.boxes is None:
            return coords, labels
        corners, kinds = self.boxes
        return torch.cat([corners, coords], 1), torch.cat([kinds, labels], 1)


class Interaction:
    """The click loop on a batch of encoded crops: add a click a sample, decode, keep the masks.

    Each click is decoded with the masks of the click before it, as SAM does (arXiv:2304.02643).

    >>> from segment_anything import Interaction, sam_model_registry3D, upsample
    >>> model = sam_model_registry3D["tiny"]().eval()
    >>> with torch.no_grad():
    ...     interaction = Interaction(model, model.image_encoder(torch.randn(1, 1, 128, 128, 128)))
    ...     inside, outside = torch.tensor([[64.0, 50.0, 70.0]]), torch.tensor([[20.0, 50.0, 70.0]])
    ...     logits, iou = interaction.click(inside, torch.tensor([1]))
    ...     logits, iou = interaction.click(outside, torch.tensor([0]))
    >>> logits.shape, iou.shape
    (torch.Size([1, 1, 64, 64, 64]), torch.Size([1, 1]))
    >>> mask = upsample(logits, 128) > model.mask_threshold
    >>> mask.shape
    torch.Size([1, 1, 128, 128, 128])

    Args:
        model: The network. Its ``PromptConfig.click_memory`` decides which clicks are decoded.
        image_embedding: (B, E, g, g, g), from the model's image encoder; of a refined network
            from `encode_image`.
        decode: A function that decodes in place of the model, such as `InferenceEngine.decode`.

    Attributes:
        low_res_masks: (B, 1, m, m, m) float32 logits that the next click is decoded with; zeros
            before the first. Assign logits to start from a given mask or another network's mask.
    """

    def __init__(
        self, model: Sam3D, image_embedding: Tensor, *, decode: Decode | None = None
    ) -> None:
        self._masks = no_mask(model, len(image_embedding), image_embedding.device)
        self._unfinished: tuple[Tensor, Tensor] | None = None  # the clicks of raw masks
        self._embedding = image_embedding
        self._history = ClickHistory(model.config.given_clicks)
        self._model = model
        if model.config.prompt.boxes:
            batch, device = len(image_embedding), image_embedding.device
            none = torch.zeros(batch, dtype=torch.bool, device=device)
            self.give_boxes(torch.zeros(batch, 2, 3, device=device), none)
        if decode is None:
            dense_pe = model.prompt_encoder.get_dense_pe()
            decode = partial(decode_points, model, dense_pe=dense_pe)
        self._decode = decode

    def give_boxes(self, boxes: Tensor, given: Tensor) -> None:
        """Give a box a sample; the clicks from now on are decoded with it.

        A box is decoded with the next click, which may be `NO_CLICK`. Networks are trained with
        the box as mask prompt as well: assign the logits of its ellipsoid to ``low_res_masks``.

        Args:
            boxes: (B, 2, 3) start and stop in the crops' voxels, half-open; on the device of the
                embedding, as clicks are.
            given: (B,) bool, False for samples without a box.

        Raises:
            ValueError: the network takes no boxes, or the shapes do not fit the embedding's batch.
        """
        require_boxes(self._model.config)
        batch = len(self._embedding)
        if boxes.shape != (batch, 2, 3) or given.shape != (batch,):
            raise ValueError(
                f"give_boxes: got boxes {tuple(boxes.shape)} and flags {tuple(given.shape)}, "
                f"expected ({batch}, 2, 3) and ({batch},), one box for each embedding"
            )
        self._history.boxes = box_points(boxes, given)

    @property
    def low_res_masks(self) -> Tensor:
        if self._unfinished is not None:
            embedding = self._embedding.detach()
            self._masks = finish_masks(self._model, self._masks, embedding, *self._unfinished)
            self._unfinished = None
        return self._masks

    @low_res_masks.setter
    def low_res_masks(self, masks: Tensor) -> None:
        self._masks, self._unfinished = masks, None

    def click(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add one click a sample and decode.

        Args:
            coords: (B, 3) float indices into the crops' arrays, in the order of their axes.
            labels: (B,) integers: 1 foreground, 0 background, `NO_CLICK` none for this sample.

        Returns:
            low-resolution logits (B, 1, m, m, m), through which gradients flow, and predicted IoU
            (B, 1). Above 0 is foreground; `upsample` brings the logits to the crop's size.

        Raises:
            ValueError: the shapes do not fit the embedding's batch; the click is not added.
        """
        batch = len(self._embedding)
        if coords.shape != (batch, 3) or labels.shape != (batch,):
            raise ValueError(
                f"click: got coordinates {tuple(coords.shape)} and labels {tuple(labels.shape)}, "
                f"expected ({batch}, 3) and ({batch},), one click for each embedding"
            )
        self._history.add(coords, labels)
        clicks = self._history.decoded()
        logits, iou = self._decode(self._embedding, *clicks, self.low_res_masks)
        masks = logits.detach().float()
        if self._model.training:  # the loss needs raw logits, but the next click masks as in use
            self.keep_raw(masks)
        else:
            self.low_res_masks = masks
        return logits, iou

    def keep_raw(self, masks: Tensor) -> None:
        """Keep raw masks (B, 1, m, m, m) of the last click; `finish_masks` is applied when read."""
        self._masks, self._unfinished = masks, self._history.decoded()


def decode_points(
    model: Sam3D,
    image_embedding: Tensor,
    point_coords: Tensor,
    point_labels: Tensor,
    low_res_masks: Tensor,
    dense_pe: Tensor,
    *,
    finish: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run prompt encoder and mask decoder once: tensors in, tensors out.

    Args:
        image_embedding: (B, E, g, g, g), from `encode_image`.
        point_coords: (B, N, 3), the clicks of ``SamConfig.given_clicks``; in networks with
            ``PromptConfig.boxes`` after the two points of `box_points`. The refinement fixes all
            clicks in the mask.
        point_labels: (B, N) in {1, 0, NO_CLICK}; 2 and 3 for the corners of a box.
        low_res_masks: (B, 1, m, m, m) logits.
        dense_pe: (1, C, g, g, g), the prompt encoder's ``get_dense_pe``.
        finish: In eval mode, return the masks of `finish_masks`. Otherwise masks are raw: what the
            network's loss is computed on.

    Returns:
        low-resolution logits (B, 1, m, m, m) and predicted IoU (B, 1).

    Raises:
        ValueError: the network is refined, and the embedding holds no image.
    """
    config = model.config
    inputs = image_embedding, point_coords, point_labels, low_res_masks
    if config.appends_image:
        masks, iou = _decode(model, *_without_refinement(config, *inputs), dense_pe)
        masks = upsample(wide(masks), config.low_res_size)
    else:
        masks, iou = _decode(model, *inputs, dense_pe)
    if finish and not model.training:
        masks = finish_masks(model, masks, image_embedding, point_coords, point_labels)
    return masks, iou


def finish_masks(
    model: Sam3D, masks: Tensor, image_embedding: Tensor, coords: Tensor, labels: Tensor
) -> Tensor:
    """Smooth raw masks along the edges of the image, and add ``DecoderConfig.mask_bias``.

    The bias makes up for masks that are too small. Where a network is unsure, the mask of the
    highest expected DSC takes all cells whose probability is above half of that DSC, not above 0.5
    (Lipton et al., arXiv:1402.1892); the smoothing makes masks smaller as well.

    Args:
        masks: (B, 1, m, m, m) logits.
        image_embedding, coords, labels: as in `decode_points`.
    """
    decoder = model.config.decoder
    if decoder.refine_strength:
        image, size = wide(image_of(image_embedding)), model.config.encoder.img_size
        masks = guided_mask(masks, image, coords, labels, size, decoder.refine_strength)
    return masks + decoder.mask_bias if decoder.mask_bias else masks


def _without_refinement(
    config: SamConfig, embedding: Tensor, coords: Tensor, labels: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the inputs of `decode_points` as the network gets them without the refinement.

    The image's channels are left out, and so are the clicks that are only to be fixed. Masks are
    averaged over the cells of the network's own grid.
    """
    found, expected = embedding.shape[1], config.embedding_chans
    if found != expected:
        raise ValueError(
            f"network '{config.network}', refined: got an image embedding of {found} channels, "
            f"expected {expected}, with the image: use encode_image(model, images)"
        )
    first = first_decoded(config.prompt.click_memory)
    own = embedding[:, : config.encoder.embedding_chans]
    return own, coords[:, first:], labels[:, first:], F.avg_pool3d(masks, 2)


def _decode(
    model: Sam3D,
    image_embedding: Tensor,
    point_coords: Tensor,
    point_labels: Tensor,
    low_res_masks: Tensor,
    dense_pe: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return masks and predicted IoU from the network alone; shapes as in `decode_points`."""
    is_pyramid = isinstance(model.prompt_encoder, PyramidPromptEncoder3D)
    given = {"image_embeddings": image_embedding} if is_pyramid else {}
    sparse, dense = model.prompt_encoder(
        points=(point_coords, point_labels), boxes=None, masks=low_res_masks, **given
    )
    return model.mask_decoder(
        image_embeddings=image_embedding,
        image_pe=dense_pe,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
