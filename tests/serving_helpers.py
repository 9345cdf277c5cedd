"""Sessions for tests: a small image with two balls, and a small network with random weights."""

import numpy as np
from small_cases import ball
from small_networks import RULE, small_student

from utils.prediction.predictor import Predictor
from utils.serving.scan import IntensityFlags, Scan, scan_of_array
from utils.serving.session import Session

SHAPE = (20, 24, 28)
SPACING_ZYX = (1.0, 1.1, 1.2)
CENTRES = ((6, 7, 8), (13, 16, 20))
FLAGS = IntensityFlags()


def voxels(shape=SHAPE, seed: int = 0) -> np.ndarray:
    """Two bright balls in noise, (D, H, W) uint8."""
    balls = sum(ball(shape, centre, 4.5) for centre in CENTRES)
    noise = np.random.default_rng(seed).integers(0, 30, shape)
    return (60 + 90 * balls + noise).astype(np.uint8)


def small_scan(seed: int = 0) -> Scan:
    return scan_of_array(voxels(seed=seed), SPACING_ZYX, "scan.nii.gz")


def small_predictor(seed: int = 1) -> Predictor:
    return Predictor(small_student(seed), RULE)


def open_session(scan: Scan | None = None) -> Session:
    session = Session(small_predictor())
    session.set_scan(small_scan() if scan is None else scan)
    return session


def plain_masks(prompts, scan: Scan | None = None) -> np.ndarray:
    """The label map of a fresh `Predictor` that is given the prompts once, (D, H, W)."""
    scan = small_scan() if scan is None else scan
    predictor = small_predictor()
    predictor.set_image(scan.image, affine=scan.volume.affine, hounsfield=scan.hounsfield)
    for target, given in prompts.items():
        for prompt in given:
            predictor.add(prompt, target=target)
    return predictor.segmentation()
