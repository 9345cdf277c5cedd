"""Protocol "clicks" on one case: each target alone, in a crop about it, with simulated clicks.

The network's input is a cube about the target. Its logits are resampled to the volume's own grid
and thresholded there, and the challenge's rule places the next click on that grid. Target voxels
outside the cube count as missed.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segment_anything import CropPredictor, Engine, Interaction, Sam3D
from utils.cases.label_table import modality_of
from utils.cases.prepared import Case, read_case, targets_of
from utils.prompts.click_method import challenge_click, mended_share
from utils.prompts.kinds import Click
from utils.results.ball import BALL_RADII_MM, ball_dsc_curve
from utils.results.ceiling import best_logits, cell_logits, upsampled
from utils.results.metrics import dsc, nsd
from utils.results.thickness import thickness_mm
from utils.run.device import peak_memory_mib, synchronise
from utils.run.network import network_errors
from utils.validation.image_check import (
    ADAPTIVE,
    ANOTHER,
    NOISE,
    ImageCheck,
    NextClick,
    other_image,
    replay,
    wrong_images,
)
from utils.validation.scores import CLICKS, CaseScore, Ceiling, ImageCurves, TargetScore
from utils.validation.tables import clicked
from utils.volumes.crops import Crop, cut
from utils.volumes.geometry import CropRule
from utils.volumes.grid import Volume
from utils.volumes.labels import InstanceRule


class ScoredCase(NamedTuple):
    """The scores of a case, with its image, label and prediction."""

    score: CaseScore
    image: Volume
    label: Volume
    prediction: np.ndarray  # (D, H, W) uint16 after the last click: instance numbers, or 1


class ClickStep(NamedTuple):
    """One click of the loop on one target."""

    mask: np.ndarray  # (D, H, W) bool after the click
    click: Click | None  # None: no error was left, so nothing was clicked
    decoder_ms: float


class Evaluator:
    """Runs protocol "clicks" with one network.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from segment_anything import sam_model_registry3D
    >>> from utils.cases.prepared import find_cases
    >>> from utils.files.nifti import write_nifti
    >>> tree = tempfile.TemporaryDirectory()
    >>> folder = Path(tree.name) / "liver" / "CT_Ours"
    >>> image = np.zeros((20, 48, 40), np.uint8)
    >>> image[5:15, 10:30, 10:30] = 200
    >>> write_nifti(folder / "imagesTr" / "a.nii.gz", image, np.eye(4))
    >>> write_nifti(folder / "labelsTr" / "a.nii.gz", image // 200, np.eye(4))
    >>> how = {"num_clicks": 2, "device": torch.device("cpu"), "precision": torch.float32}
    >>> evaluator = Evaluator(sam_model_registry3D["tiny"](), CropRule(), **how)
    >>> scored = evaluator.run_case(find_cases([folder])[0])
    >>> len(scored.score.targets[0].dsc)  # step 0 is the box, which this protocol does not give
    3
    >>> scored.prediction.shape
    (20, 48, 40)

    Args:
        model: the network; moved to ``device``.
        rule: the crops that the network was trained on.
        num_clicks: clicks on each target, at least 1.
        device: where the network runs.
        precision: dtype of the network's arithmetic; float32 or, where the device has it, bfloat16
            or float16.
        engine: how the network's kernels run; see segment_anything/engine.py.
        max_instances: at most this many instances of an instance label are scored, largest first.
        ceiling: also score the best mask of the network's grid.

    Raises:
        EngineError: the machine cannot run the engine.
        InputError: the network computes NaN or infinity.
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
        ceiling: bool = False,
    ) -> None:
        self.network = CropPredictor(model, device, precision, engine)
        self.rule, self.num_clicks = rule, num_clicks
        self.instances = InstanceRule(most=max_instances, min_voxels=1)
        self.device, self.ceiling = device, ceiling
        self._warm_up()

    @network_errors()
    def run_case(self, case: Case, check: ImageCheck | None = None) -> ScoredCase:
        """Segment and score every target of a case.

        Only reads the case's files. All scores are computed on the image's own grid; NSD has a
        tolerance of 2 mm.

        Args:
            check: replay the clicks on wrong images; None: no image check.

        Raises:
            InputError: the case, or the other one of the check, cannot be read, or the network
                computes NaN or infinity.
        """
        image, label = read_case(case)
        other = other_image(check.other, self.rule) if check and check.other else None
        prediction = np.zeros(label.array.shape, np.uint16)
        targets = []
        for name, value in targets_of(case, label.array, self.instances):
            target = label.array == value
            crop = cut(image.array, target, image.affine, self.rule, case.is_ct)
            score, mask = self._run_target(name, value, case, image, target, crop)
            if check:
                curves = self._checked(score, image, target, crop, other)
                score = replace(score, images=tuple(curves))
            prediction[mask] = value
            targets.append(score)
        score = CaseScore(
            case=case.sample_id,
            dataset=case.dataset,
            modality=modality_of(case.dataset),
            shape=label.array.shape,
            spacing_xyz=image.spacing_zyx[::-1],
            has_box=False,
            seconds=self._seconds(targets),
            peak_memory_mib=peak_memory_mib(self.device),
            targets=tuple(targets),
            protocol=CLICKS,
        )
        return ScoredCase(score, image, label, prediction)

    def _run_target(
        self, name: str, value: int, case: Case, image: Volume, target: np.ndarray, crop: Crop
    ) -> tuple[TargetScore, np.ndarray]:
        embedding, encoder_ms = self._timed(self.network.encode, torch.from_numpy(crop.image))
        mask = np.zeros_like(target)
        dscs, nsds, clicks, mended, decoder_ms = [0.0], [0.0], [], [], []
        interaction = self.network.interaction(embedding)
        for step in self._interact(interaction, crop, self._errors_of(target, crop)):
            if step.click:
                clicks.append(step.click)
                mended.append(mended_share(mask, step.mask, target, step.click))
                decoder_ms.append(step.decoder_ms)
            mask = step.mask
            dscs.append(float(dsc(target, mask)))
            nsds.append(float(nsd(target, mask, image.spacing_zyx)))
        ball = ball_dsc_curve(target, clicks[0].zyx, image.spacing_zyx, BALL_RADII_MM)
        score = TargetScore(
            class_id=value,
            name=name,
            organ=case.organ,
            voxels=int(np.count_nonzero(target)),
            dsc=tuple(dscs),
            nsd=tuple(nsds),
            nsd_official=tuple(nsds),
            clicks=tuple((*click.zyx, int(click.is_foreground)) for click in clicks),
            coverage=crop.coverage,
            mended=tuple(mended),
            ball_dsc=tuple(ball.tolist()),
            encoder_ms=encoder_ms,
            decoder_ms=tuple(decoder_ms),
            thickness_mm=thickness_mm(target, image.spacing_zyx),
            ceiling=self._ceiling(crop, target, image.spacing_zyx) if self.ceiling else None,
        )
        return score, mask

    def _checked(
        self,
        score: TargetScore,
        image: Volume,
        target: np.ndarray,
        crop: Crop,
        other: np.ndarray | None,
    ) -> Iterator[ImageCurves]:
        """Yield the scores with each wrong image; ``score`` is that of the own image."""
        spacing_mm = self.rule.spacing_for(target.shape, image.spacing_zyx)
        wrong = {} if other is None else {ANOTHER: other}
        for name, values in (wrong | wrong_images(crop, spacing_mm, score.name)).items():
            embedding = self.network.encode(torch.from_numpy(values))
            curves = partial(self._curves, embedding, crop, target, image.spacing_zyx)
            yield ImageCurves(name, *curves(replay(clicked(score))))
            if name == NOISE:
                yield ImageCurves(ADAPTIVE, *curves(self._errors_of(target, crop)))

    def _curves(
        self,
        embedding: Tensor,
        crop: Crop,
        target: np.ndarray,
        spacing_zyx: tuple[float, float, float],
        next_click: NextClick,
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return DSC and NSD after each click."""
        steps = self._interact(self.network.interaction(embedding), crop, next_click)
        scores = [(dsc(target, s.mask), nsd(target, s.mask, spacing_zyx)) for s in steps]
        dscs, nsds = zip(*scores, strict=True)
        return tuple(map(float, dscs)), tuple(map(float, nsds))

    def _ceiling(
        self, crop: Crop, target: np.ndarray, spacing_zyx: tuple[float, float, float]
    ) -> Ceiling:
        """Return the scores of the best mask of the grid, and of what a loss on it asks for."""
        scores = []
        for logits_of in (best_logits, cell_logits):
            logits = logits_of(crop.label, self.network.model.config.low_res_size)
            values = upsampled(logits, self.rule.size)
            mask = crop.grid.paste(values, outside=-np.inf) > 0
            scores += [float(dsc(target, mask)), float(nsd(target, mask, spacing_zyx))]
        return Ceiling(*scores)

    def _errors_of(self, target: np.ndarray, crop: Crop) -> NextClick:
        """Return the rule that places clicks in the errors that the crop covers."""
        return partial(challenge_click, gt_mask=target & crop.grid.covered())

    def _interact(
        self, interaction: Interaction, crop: Crop, next_click: NextClick
    ) -> Iterator[ClickStep]:
        """Yield one step a click."""
        mask, milliseconds = np.zeros(crop.grid.volume_shape, bool), 0.0
        for _ in range(self.num_clicks):
            click = next_click(mask)
            if click is not None:
                point = torch.tensor([crop.grid.to_crop(click.zyx)], dtype=torch.float32)
                label = torch.tensor([int(click.is_foreground)])
                logits, milliseconds = self._timed(self._click, interaction, point, label)
                values = logits[0, 0].float().cpu().numpy()
                threshold = self.network.model.mask_threshold
                mask = crop.grid.paste(values, outside=-np.inf) > threshold
            yield ClickStep(mask, click, milliseconds)

    def _click(self, interaction: Interaction, coords: Tensor, labels: Tensor) -> Tensor:
        """Return the crop's logits (1, 1, S, S, S) after one more click."""
        low_res, _ = interaction.click(coords, labels)
        return self.network.engine.upsample(low_res, self.rule.size)

    def _seconds(self, targets: list[TargetScore]) -> tuple[float, ...]:
        """Return the network's time of each step, over all targets; no box in step 0."""
        steps = np.zeros(1 + self.num_clicks)
        for target in targets:
            steps[1] += target.encoder_ms
            steps[1 : 1 + len(target.decoder_ms)] += target.decoder_ms
        return tuple((steps / 1000).tolist())

    def _timed(self, function, *inputs):
        """Return the result and the synchronised time in ms."""
        synchronise(self.device)
        start = time.perf_counter()
        out = function(*inputs)
        synchronise(self.device)
        return out, 1000 * (time.perf_counter() - start)

    @network_errors()
    def _warm_up(self) -> None:
        """Run every shape once, untimed: first calls pay for allocation and kernel choice."""
        size = self.rule.size
        interaction = self.network.interaction(self.network.encode(torch.randn(size, size, size)))
        for _ in range(self.num_clicks):
            middle = torch.full((1, 3), size / 2)
            self._click(interaction, middle, torch.ones(1, dtype=torch.long))
