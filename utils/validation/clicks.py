"""Cases x network -> scores after each simulated click. Both validation scripts are this.

A case is scored on its own grid: the network sees a cube about the target, its logits are
resampled to the volume and thresholded there, and the next click is the challenge's on that grid.
Truth outside the cube counts as missed.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from segment_anything import CropPredictor, Engine, Interaction, Sam3D
from utils.cases.prepared import Case, read_case, targets_of
from utils.prompts.click_method import challenge_click, mended_share
from utils.results.ball import ball_dsc_curve
from utils.results.metrics import dsc, interaction_auc, nsd
from utils.volumes.crops import Crop, cut
from utils.volumes.geometry import CropRule
from utils.volumes.grid import Volume
from utils.volumes.labels import InstanceRule

#: Radii of the ball that every network must beat, in mm.
BALL_RADII_MM = np.arange(1.0, 101.0)


@dataclass
class TargetResult:
    """One target of one case: scores after each click, times, and what was clicked where."""

    sample_id: str
    organ: str
    dataset: str
    coverage: float
    dsc: list[float] = field(default_factory=list)
    nsd: list[float] = field(default_factory=list)
    clicks: list[tuple[tuple[int, int, int], bool]] = field(default_factory=list)
    mended: list[float] = field(default_factory=list)  # by each click, of the error it lies in
    encoder_ms: float = 0.0
    decoder_ms: list[float] = field(default_factory=list)
    ball_dsc: np.ndarray = field(default_factory=lambda: np.zeros(len(BALL_RADII_MM)))

    @property
    def dsc_auc(self) -> float:
        return interaction_auc(self.dsc)

    @property
    def nsd_auc(self) -> float:
        return interaction_auc(self.nsd)


@dataclass(frozen=True)
class CaseResult:
    """All targets of a case, and the answer on the image's grid: instance numbers, or 1."""

    case: Case
    image: Volume
    label: Volume
    prediction: np.ndarray
    targets: list[TargetResult]


class Evaluator:
    """Runs the click protocol with one network.

    Args:
        rule: the crops that the network was trained on.
        num_clicks: clicks a target.
        max_instances: how many of an instance label's largest instances are scored.
    """

    def __init__(
        self,
        model: Sam3D,
        rule: CropRule,
        *,
        num_clicks: int,
        device: torch.device,
        precision: torch.dtype,
        engine: Engine = "eager",
        max_instances: int = 8,
    ) -> None:
        self.network = CropPredictor(model, device, precision, engine)
        self.rule, self.num_clicks = rule, num_clicks
        self.instances = InstanceRule(most=max_instances, min_voxels=1)
        self.device = device
        self._warm_up()

    def run_case(self, case: Case) -> CaseResult:
        """Segment every target of ``case`` by clicks.

        Raises:
            InputError: the case cannot be read.
        """
        image, label = read_case(case)
        prediction = np.zeros(label.array.shape, np.uint16)
        targets = []
        for name, value in targets_of(case, label.array, self.instances):
            target = label.array == value
            result, mask = self._run_target(name, case, image, target)
            prediction[mask] = value
            targets.append(result)
        return CaseResult(case, image, label, prediction, targets)

    def _run_target(
        self, name: str, case: Case, image: Volume, target: np.ndarray
    ) -> tuple[TargetResult, np.ndarray]:
        crop = cut(image.array, target, image.affine, self.rule, case.is_ct)
        result = TargetResult(name, case.organ, case.dataset, crop.coverage)
        mask = np.zeros_like(target)
        for after, click in self._interact(crop, target, result):
            if click:
                result.clicks.append(click)
                result.mended.append(mended_share(mask, after, target, click))
            mask = after
            result.dsc.append(dsc(target, mask))
            result.nsd.append(nsd(target, mask, image.spacing_zyx))
        first_click, _ = result.clicks[0]
        result.ball_dsc = ball_dsc_curve(target, first_click, image.spacing_zyx, BALL_RADII_MM)
        return result, mask

    def _interact(
        self, crop: Crop, target: np.ndarray, result: TargetResult
    ) -> Iterator[tuple[np.ndarray, tuple | None]]:
        """Yield the mask on the volume's grid after each click, and the click (None: no error)."""
        reachable = target & crop.grid.covered()
        image = torch.from_numpy(crop.image)
        embedding, result.encoder_ms = self._timed(self.network.encode, image)
        interaction, mask = self.network.interaction(embedding), np.zeros_like(target)
        for _ in range(self.num_clicks):
            click = challenge_click(mask, reachable)
            if click is not None:
                point = torch.tensor([crop.grid.to_crop(click[0])], dtype=torch.float32)
                label = torch.tensor([int(click[1])])
                logits, milliseconds = self._timed(self._click, interaction, point, label)
                result.decoder_ms.append(milliseconds)
                values = logits[0, 0].float().cpu().numpy()
                mask = crop.grid.paste(values, outside=-np.inf) > self.network.model.mask_threshold
            yield mask, click

    def _click(self, interaction: Interaction, coords: Tensor, labels: Tensor) -> Tensor:
        """Return the crop's logits (1, 1, S, S, S) after one more click."""
        low_res, _ = interaction.click(coords, labels)
        return self.network.engine.upsample(low_res, self.rule.size)

    def _timed(self, function, *inputs):
        """Return the result and the synchronised time in ms."""
        self._synchronise()
        start = time.perf_counter()
        out = function(*inputs)
        self._synchronise()
        return out, 1000 * (time.perf_counter() - start)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _warm_up(self) -> None:
        """Run every shape once, untimed: first calls pay for allocation and kernel choice."""
        size = self.rule.size
        interaction = self.network.interaction(self.network.encode(torch.randn(size, size, size)))
        for _ in range(self.num_clicks):
            middle = torch.full((1, 3), size / 2)
            self._click(interaction, middle, torch.ones(1, dtype=torch.long))
