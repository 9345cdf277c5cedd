"""One network on crops: encode each once, then give it clicks and a mask, as often as wanted.

SAM's own division of work (arXiv:2304.02643). Where crops lie on a volume, and what becomes of the
masks there, is the business of whoever uses this.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segment_anything.decoding import NO_CLICK, ClickHistory, Interaction, no_mask
from segment_anything.engine import Engine, InferenceEngine
from segment_anything.modeling import Sam3D

#: A click: crop voxels in the network's axis order, and whether the target is there.
CropClick = tuple[Sequence[float], bool]


class Prompted(NamedTuple):
    """What the mask decoder is asked about one target."""

    image_embedding: Tensor  # (1, C, g, g, g), of its crop
    clicks: Sequence[CropClick]  # in the order clicked; none at all is allowed
    low_res_mask: Tensor | None = None  # logits (1, 1, m, m, m) to start from


class CropPredictor:
    """A network in use: on a device, in a precision, without gradients.

    Args:
        precision: of the arithmetic; crops, clicks and masks are float32.
        engine: how its kernels run, see segment_anything/engine.py.
        batch_size: crops or targets at most that go through the network at once.
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
        """Return the image embedding (1, C, g, g, g) of a normalised crop (S, S, S)."""
        return self.encode_all([crop])[0]

    def encode_all(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """Return the image embedding (1, C, g, g, g) of each normalised crop (S, S, S)."""
        found = []
        for first in range(0, len(crops), self.batch_size):
            batch = torch.stack(list(crops[first : first + self.batch_size]))[:, None]
            embeddings = self.engine.encode(self._rounded(batch))[: len(batch)]
            # Clones: a view would keep the embeddings of all of the batch.
            found += [embedding.clone() for embedding in embeddings.split(1)]
        return found

    def interaction(self, image_embedding: Tensor) -> Interaction:
        """Return the click loop on a crop's embedding (1, C, g, g, g)."""
        return Interaction(self.model, image_embedding, decode=self.engine.decode)

    def decode_all(self, targets: Sequence[Prompted]) -> list[Tensor]:
        """Return low-resolution logits (1, 1, m, m, m) of each target, float32.

        Targets with equally many clicks go through the network together.
        """
        points = [self._shown(target.clicks) for target in targets]
        alike = defaultdict(list)
        for number, (coords, _) in enumerate(points):
            alike[coords.shape[1]].append(number)
        found: dict[int, Tensor] = {}
        for numbers in alike.values():
            for first in range(0, len(numbers), self.batch_size):
                batch = numbers[first : first + self.batch_size]
                inputs = (
                    [targets[n].image_embedding for n in batch],
                    [points[n][0] for n in batch],
                    [points[n][1] for n in batch],
                    [self._mask(targets[n]) for n in batch],
                )
                low_res, _ = self.engine.decode(*(self._rounded(torch.cat(t)) for t in inputs))
                found.update(zip(batch, low_res[: len(batch)].split(1), strict=True))
        return [found[number] for number in range(len(targets))]

    def _rounded(self, batch: Tensor) -> Tensor:
        """Fill a batch up to the next power of two where each size costs kernels of its own."""
        if self.engine.name == "eager":
            return batch
        missing = 2 ** math.ceil(math.log2(len(batch))) - len(batch)
        return torch.cat([batch, batch[:1].expand(missing, *batch.shape[1:])])

    def _shown(self, clicks: Sequence[CropClick]) -> tuple[Tensor, Tensor]:
        """Return the clicks that the network sees: (1, N, 3) and (1, N), still on the CPU."""
        history = ClickHistory(self.model.config.prompt.click_memory)
        for place, is_foreground in clicks or [((0.0, 0.0, 0.0), None)]:
            label = NO_CLICK if is_foreground is None else int(is_foreground)
            history.add(torch.tensor([tuple(place)], dtype=torch.float32), torch.tensor([label]))
        return history.shown()

    def _mask(self, target: Prompted) -> Tensor:
        if target.low_res_mask is not None:
            return target.low_res_mask.to(self.device)
        return no_mask(self.model, device=self.device)
