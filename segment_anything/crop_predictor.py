"""One network on crops: encode each crop once, then decode clicks and masks as often as needed.

SAM divides the work in the same way (arXiv:2304.02643). This module does not handle volumes:
utils/prediction cuts the crops and puts the masks back.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segment_anything.decoding import (
    NO_CLICK,
    Interaction,
    box_points,
    first_decoded,
    no_mask,
    require_boxes,
)
from segment_anything.engine import Engine, InferenceEngine
from segment_anything.modeling import Sam3D

#: A click: its index into the crop's array, in the order of the axes, and whether it is foreground.
CropClick = tuple[Sequence[float], bool]


class Prompted(NamedTuple):
    """One target to decode: its crop, its clicks, and a mask to start from."""

    image_embedding: Tensor  # (1, E, g, g, g), of its crop
    clicks: Sequence[CropClick]  # in the order clicked; may be empty
    low_res_mask: Tensor | None = None  # (1, 1, m, m, m) logits to start from; None: no mask
    # Start and stop in crop voxels, half-open; for networks with ``PromptConfig.boxes``.
    box: tuple[Sequence[float], Sequence[float]] | None = None


class CropPredictor:
    """A network for inference on crops: on one device, in one precision, without gradients.

    Shapes: S voxels along each axis of a crop, E channels of the image embedding, g tokens along
    each axis, and m cells of the low-resolution masks. The axes of crops point to the
    patient's right, anterior and superior.

    >>> from segment_anything import CropPredictor, Prompted, sam_model_registry3D
    >>> model = sam_model_registry3D["tiny"]()
    >>> predictor = CropPredictor(model, torch.device("cpu"))
    >>> embedding = predictor.encode(torch.randn(128, 128, 128))
    >>> embedding.shape
    torch.Size([1, 2240, 8, 8, 8])
    >>> clicks = [((40, 64, 70), True), ((20, 64, 70), False)]  # voxel, foreground or not
    >>> (logits,) = predictor.decode_all([Prompted(embedding, clicks)])
    >>> logits.shape
    torch.Size([1, 1, 64, 64, 64])
    >>> predictor.engine.upsample(logits, 128).shape
    torch.Size([1, 1, 128, 128, 128])

    Args:
        model: The network, or `refined` of it. It is moved to ``device`` and set to eval mode; its
            weights are not changed.
        device: The device that the network runs on.
        precision: dtype of the arithmetic: float32, bfloat16 or float16. Crops, clicks and masks
            are float32.
        engine: How the kernels run: "eager", "compiled" or "graph", see
            segment_anything/engine.py.
        batch_size: At most this many crops or targets go through the network at once.

    Raises:
        EngineError: the machine cannot run the engine.
    """

    def __init__(
        self,
        model: Sam3D,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        engine: Engine = "eager",
        batch_size: int = 16,
    ) -> None:
        self.engine = InferenceEngine(model, device, precision, engine)
        self.model, self.device, self.batch_size = model, device, batch_size

    def encode(self, crop: Tensor) -> Tensor:
        """Return the image embedding (1, E, g, g, g) of a normalised crop (S, S, S) float32.

        Raises:
            ValueError: S is not the network's ``img_size``.
        """
        return self.encode_all([crop])[0]

    def encode_all(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """Return the image embedding of each crop, in their order; see `encode`."""
        found = []
        for first in range(0, len(crops), self.batch_size):
            batch = torch.stack(list(crops[first : first + self.batch_size]))[:, None]
            embeddings = self.engine.encode(self._padded(batch))[: len(batch)]
            # Clones, since a view would keep the whole batch in memory.
            found += [embedding.clone() for embedding in embeddings.split(1)]
        return found

    def interaction(self, image_embedding: Tensor) -> Interaction:
        """Return the click loop on a crop's embedding (1, E, g, g, g)."""
        return Interaction(self.model, image_embedding, decode=self.engine.decode)

    def decode_all(self, targets: Sequence[Prompted]) -> list[Tensor]:
        """Return low-resolution logits (1, 1, m, m, m) float32 of each target, in their order.

        Targets with equally many points go through the network together.

        Raises:
            ValueError: a target has a box, and the network takes none.
        """
        points = [self._points(target) for target in targets]
        by_clicks = defaultdict(list)  # number of points -> indices of targets with that many
        for number, (coords, _) in enumerate(points):
            by_clicks[coords.shape[1]].append(number)
        found: dict[int, Tensor] = {}
        for numbers in by_clicks.values():
            for first in range(0, len(numbers), self.batch_size):
                batch = numbers[first : first + self.batch_size]
                inputs = (
                    [targets[n].image_embedding for n in batch],
                    [points[n][0] for n in batch],
                    [points[n][1] for n in batch],
                    [self._mask(targets[n]) for n in batch],
                )
                low_res, _ = self.engine.decode(*(self._padded(torch.cat(t)) for t in inputs))
                found.update(zip(batch, low_res[: len(batch)].split(1), strict=True))
        return [found[number] for number in range(len(targets))]

    def _padded(self, batch: Tensor) -> Tensor:
        """Pad a batch to the next power of two, for engines that compile kernels for each size."""
        if self.engine.name == "eager":
            return batch
        missing = 2 ** math.ceil(math.log2(len(batch))) - len(batch)
        return torch.cat([batch, batch[:1].expand(missing, *batch.shape[1:])])

    def _points(self, target: Prompted) -> tuple[Tensor, Tensor]:
        """Return the points to give: coordinates (1, N, 3) and labels (1, N), on the CPU."""
        config, box = self.model.config, target.box
        if box is not None:
            require_boxes(config)
        clicks = [(tuple(place), int(is_foreground)) for place, is_foreground in target.clicks]
        if not clicks or box is not None:
            # In training a box comes in a turn of its own, without a click.
            clicks = [((0.0, 0.0, 0.0), NO_CLICK), *clicks]
        places, labels = zip(*clicks[first_decoded(config.given_clicks) :], strict=True)
        coords, labels = torch.tensor([places], dtype=torch.float32), torch.tensor([labels])
        if not config.prompt.boxes:
            return coords, labels
        boxes = torch.tensor([box or [[0.0] * 3] * 2], dtype=torch.float32)
        corners, kinds = box_points(boxes, torch.tensor([box is not None]))
        return torch.cat([corners, coords], 1), torch.cat([kinds, labels], 1)

    def _mask(self, target: Prompted) -> Tensor:
        """Return the mask prompt (1, 1, m, m, m) on the network's device."""
        if target.low_res_mask is not None:
            return target.low_res_mask.to(self.device)
        return no_mask(self.model, device=self.device)
