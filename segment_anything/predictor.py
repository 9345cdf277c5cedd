"""One network on one crop: encode it once, then give it clicks and a mask, as often as wanted.

SAM's own division of work (arXiv:2304.02643). Where crops lie on a volume, and what becomes of the
masks there, is the business of whoever uses this.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from segment_anything.modeling import Sam3D
from segment_anything.prompting import NO_CLICK, ClickHistory, decode


class CropPredictor:
    """A network in use: on a device, in a precision, without gradients.

    Args:
        precision: of the arithmetic; crops, clicks and masks are float32.
    """

    def __init__(
        self, model: Sam3D, device: torch.device, precision: torch.dtype = torch.float32
    ) -> None:
        self.model = model.to(device).eval()
        self.device, self.precision = device, precision

    @torch.inference_mode()
    def encode(self, crop: Tensor) -> Tensor:
        """Return the image embedding (1, C, g, g, g) of a normalised crop (S, S, S)."""
        image = crop[None, None].to(self.device)
        with autocast(self.device, self.precision):
            return self.model.image_encoder(image)

    @torch.inference_mode()
    def decode(
        self,
        image_embedding: Tensor,
        clicks: Sequence[tuple[Sequence[float], bool]],
        low_res_masks: Tensor | None,
    ) -> Tensor:
        """Return low-resolution logits (1, 1, m, m, m), float32.

        Args:
            image_embedding: of the crop.
            clicks: crop voxels in the network's axis order, and whether the target is there; in
                the order clicked. None at all is allowed.
            low_res_masks: logits (1, 1, m, m, m) to start from; None: none yet.
        """
        history = ClickHistory(self.model.config.prompt.click_memory)
        for place, is_foreground in clicks or [((0.0, 0.0, 0.0), None)]:
            label = NO_CLICK if is_foreground is None else int(is_foreground)
            history.add(
                torch.tensor([tuple(place)], dtype=torch.float32, device=self.device),
                torch.tensor([label], device=self.device),
            )
        with autocast(self.device, self.precision):
            low_res, _ = decode(self.model, image_embedding, history, low_res_masks)
        return low_res.float()


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Return the mixed-precision context of ``dtype``; none for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)
