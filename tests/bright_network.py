"""A network that segments bright voxels, in place of a trained one in tests of geometry."""

import numpy as np
import torch
import torch.nn.functional as F
from small_networks import RULE, small_sam

from segment_anything import CropPredictor
from utils.prediction.predictor import Predictor
from utils.prediction.session import PredictorOptions
from utils.volumes.geometry import CropRule


class BrightNetwork(CropPredictor):
    """The embedding is the crop; the logits are the crop's means over cells, whatever the clicks.

    Black is -4, white is 4; a crop of one brightness counts as white.
    """

    def encode_all(self, crops):
        return [self._shades(crop)[None, None] for crop in crops]

    def decode_all(self, targets):
        cells = 4 * self.model.config.encoder.grid_size
        crops = [target.image_embedding for target in targets]
        return [F.avg_pool3d(crop, crop.shape[-1] // cells) for crop in crops]

    def _shades(self, crop):
        low, high = crop.min(), crop.max()
        shade = (crop - low) / (high - low) if high > low else torch.ones_like(crop)
        return 8 * shade - 4


def bright_predictor(rule: CropRule = RULE, **options) -> Predictor:
    predictor = Predictor(small_sam(), rule, options=PredictorOptions(**options))
    predictor.network = BrightNetwork(predictor.network.model, torch.device("cpu"))
    return predictor


def ball_image(shape, centre_mm, radius_mm, spacing_xyz) -> tuple[np.ndarray, np.ndarray]:
    """Return image, a white ball on black, and truth; centre (z, y, x) in mm from voxel 0."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    parts = zip(axes, spacing_xyz[::-1], centre_mm, strict=True)
    truth = sum((a * s - c) ** 2 for a, s, c in parts) <= radius_mm**2
    return np.where(truth, 200, 0).astype(np.uint8), truth
