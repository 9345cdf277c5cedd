"""The network on one image: decode requests answered in batches, image embeddings cached.

In utils/prediction only this module and `Predictor`, which creates the decoder, use tensors.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from segment_anything import CropPredictor, Prompted
from utils.errors import InputError
from utils.prediction.session import DecodeRequest
from utils.volumes.crops import cut_image
from utils.volumes.geometry import CropGrid

#: Bytes of image embeddings that are cached, some hundreds; the least recently used go first.
EMBEDDING_BYTES = 2**30


class BatchDecoder:
    """A network on one image. Every cube of the image is encoded once while it is in the cache.

    Args:
        network: its ``batch_size`` limits how many requests are answered at a time.
        image: (D, H, W) real numbers, not copied.
        hounsfield: values are Hounsfield units: clamp them as in training.
    """

    def __init__(
        self, network: CropPredictor, image: np.ndarray, *, hounsfield: bool = False
    ) -> None:
        self.network = network
        self.cells = network.model.config.low_res_size  # edge of low-resolution masks
        self.boxes = network.model.config.prompt.boxes  # the network takes boxes
        self.encoder_runs = 0  # cubes encoded so far
        self.embedding_bytes: int | None = None  # that are cached; None: `EMBEDDING_BYTES`
        self._image, self._hounsfield = image, hounsfield
        self._embeddings: OrderedDict[CropGrid, Tensor] = OrderedDict()

    def decode(self, requests: Sequence[DecodeRequest]) -> list[np.ndarray]:
        """Return low-resolution logits (m, m, m) float32 for each request."""
        found: dict[int, np.ndarray] = {}
        # Sorted by the number of points, since only requests of equal number share a batch; a box
        # adds one point.
        points = [len(request.clicks) + (request.box is not None) for request in requests]
        order = sorted(range(len(requests)), key=points.__getitem__)
        for first in range(0, len(order), self.network.batch_size):
            numbers = order[first : first + self.network.batch_size]
            logits = self._decode_batch([requests[number] for number in numbers])
            found.update(zip(numbers, logits, strict=True))
        return [found[number] for number in range(len(requests))]

    def _decode_batch(self, requests: Sequence[DecodeRequest]) -> list[np.ndarray]:
        embeddings = self._embedded(request.grid for request in requests)
        targets = [
            Prompted(
                embeddings[request.grid], request.clicks, _tensor_of(request.low_res), request.box
            )
            for request in requests
        ]
        low_res = torch.cat(self.network.decode_all(targets)).cpu().numpy()
        return [
            logits.copy() for logits in low_res[:, 0]
        ]  # a view would keep the whole batch in memory

    def _embedded(self, grids: Iterable[CropGrid]) -> dict[CropGrid, Tensor]:
        """Return the image embedding of each cube; encode only the cubes that are not cached."""
        grids = list(dict.fromkeys(grids))
        new = [grid for grid in grids if grid not in self._embeddings]
        crops = [cut_image(grid, self._image, hounsfield=self._hounsfield) for grid in new]
        try:
            encoded = self.network.encode_all([torch.from_numpy(crop) for crop in crops])
        except ValueError as error:  # crops of another size
            raise InputError(
                f"{error}. Expected the crop rule of this network: give the one that open_network "
                "returned with it."
            ) from error
        self._embeddings.update(zip(new, encoded, strict=True))
        self.encoder_runs += len(new)
        for grid in grids:
            self._embeddings.move_to_end(grid)
        wanted = {grid: self._embeddings[grid] for grid in grids}
        most = EMBEDDING_BYTES if self.embedding_bytes is None else self.embedding_bytes
        while sum(each.nbytes for each in self._embeddings.values()) > most:
            self._embeddings.popitem(last=False)
        return wanted


def _tensor_of(low_res: np.ndarray | None) -> Tensor | None:
    """Return a mask prompt (1, 1, m, m, m) float32 of logits (m, m, m)."""
    return None if low_res is None else torch.from_numpy(low_res.astype(np.float32))[None, None]
