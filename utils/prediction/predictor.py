"""Segment from prompts alone: any image size, spacing and orientation, any number of targets.

    predictor = Predictor(model, rule)
    predictor.set_image(volume, spacing_xyz=(0.8, 0.8, 2.5))
    predictor.add_point((40, 210, 260), positive=True)
    mask = predictor.mask()                      # (D, H, W) bool on the image's own grid

Targets have ids from 1 on. They share the image's embeddings; their masks compete in
`Predictor.segmentation`. How prompts become masks: utils/prediction/session.py.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch

from segment_anything import CropPredictor, Engine, Sam3D
from utils.errors import InputError
from utils.prediction.masks import Part, compete, honour_clicks
from utils.prediction.session import ImageSession, Look, PredictorOptions, State
from utils.prompts.kinds import (
    BoxPrompt,
    Click,
    MaskPrompt,
    Prompt,
    PromptError,
    checked_box,
    checked_click,
)
from utils.run.device import pick_device, pick_engine, pick_precision
from utils.volumes.geometry import CropRule, affine_from_spacing
from utils.volumes.labels import MAX_LABEL

#: Targets that go through the network at once. A CPU gains nothing by it, and answers with the same
#: bits whatever is asked beside.
GPU_BATCH, CPU_BATCH = 16, 1
#: Bytes of logits that are kept from one answer to the next: of hundreds of small targets.
PART_BYTES = 2**29


class Predictor:
    """One network on one image at a time, with any number of targets.

    Args:
        rule: the crops that the network was trained on.
        precision: of the network's arithmetic.
        engine: how its kernels run, see segment_anything/engine.py.
        options: what is done beyond the network.
        session: makes an `ImageSession`, or something else that looks at images.
    """

    def __init__(
        self,
        model: Sam3D,
        rule: CropRule,
        *,
        device: torch.device | None = None,
        precision: torch.dtype = torch.float32,
        engine: Engine = "eager",
        options: PredictorOptions | None = None,
        session: Callable[..., ImageSession] = ImageSession,
    ) -> None:
        device = device or torch.device("cpu")
        batch_size = CPU_BATCH if device.type == "cpu" else GPU_BATCH
        self.network = CropPredictor(model, device, precision, engine, batch_size)
        self.rule, self.options = rule, options or PredictorOptions()
        self._make_session = session
        self.session: ImageSession | None = None
        self.reset()

    def set_image(
        self,
        volume: np.ndarray,
        spacing_xyz: Sequence[float] | None = None,
        *,
        affine: np.ndarray | None = None,
        hounsfield: bool = False,
    ) -> None:
        """Take an image and forget the one before and its prompts.

        Args:
            volume: (D, H, W) real numbers, not copied.
            spacing_xyz: mm, of an image whose axes grow as in the challenge's files.
            affine: NIfTI's, in place of the spacing.
            hounsfield: values are Hounsfield units: clamp them as in training.

        Raises:
            InputError: no such volume, or neither or both of spacing and affine.
        """
        if volume.ndim != 3 or 0 in volume.shape:
            raise InputError(f"the image has shape {volume.shape}. Expected (D, H, W), none 0.")
        if (spacing_xyz is None) == (affine is None):
            raise InputError("an image needs either its spacing or its affine. Give one of them.")
        if affine is None:
            affine = affine_from_spacing(np.asarray(spacing_xyz, float))
        _require_usable(volume, np.asarray(affine, float))
        self.session = self._make_session(
            self.network, volume, affine, self.rule, self.options, hounsfield=hounsfield
        )
        self.reset()

    def add_point(self, zyx: Sequence[float], positive: bool = True, *, target: int = 1) -> None:
        """Click a voxel: the target is there, or it is not."""
        self._add(target, checked_click(zyx, positive, self._shape))

    def add_box(
        self,
        start_zyx: Sequence[float],
        stop_zyx: Sequence[float],
        *,
        middle_slice: bool = False,
        target: int = 1,
    ) -> None:
        """Draw a half-open box around the target; see `BoxPrompt` for ``middle_slice``."""
        box = checked_box(start_zyx, stop_zyx, self._shape, middle_slice=middle_slice)
        self._add(target, box)

    def add_mask(self, mask: np.ndarray, *, target: int = 1) -> None:
        """Start from a mask (D, H, W), such as an earlier answer; what was said before is gone."""
        if mask.shape != self._shape or not mask.any():
            raise PromptError(
                f"the mask has shape {mask.shape} and {np.count_nonzero(mask)} voxels. Expected "
                f"the image's shape {self._shape} and at least one voxel."
            )
        self._add(target, MaskPrompt(mask.astype(bool)))

    def add(self, prompt: Prompt, *, target: int = 1) -> None:
        """Add a prompt of any kind."""
        if isinstance(prompt, BoxPrompt):
            start, stop, middle = prompt
            self.add_box(start, stop, middle_slice=middle, target=target)
        elif isinstance(prompt, MaskPrompt):
            self.add_mask(prompt.mask, target=target)
        else:
            self.add_point(prompt.zyx, prompt.is_foreground, target=target)

    def undo(self, *, target: int = 1) -> None:
        """Take the target's last prompt back."""
        if not self._prompts.get(target):
            raise PromptError(f"target {target} has no prompt to take back.")
        self._prompts[target].pop()
        del self._states[target][len(self._prompts[target]) :]
        self._parts.pop(target, None)

    def reset(self, target: int | None = None) -> None:
        """Forget the prompts of a target, or of all; the image stays."""
        if target is None:
            self._prompts: dict[int, list[Prompt]] = defaultdict(list)
            self._states: dict[int, list[State]] = defaultdict(list)
            self._parts: dict[int, tuple[State, Part]] = {}
        else:
            self._prompts.pop(target, None)
            self._states.pop(target, None)
            self._parts.pop(target, None)

    @property
    def targets(self) -> list[int]:
        """The ids of targets with a prompt, in rising order."""
        return sorted(target for target, prompts in self._prompts.items() if prompts)

    def mask(self, *, target: int = 1) -> np.ndarray:
        """Return the target's mask (D, H, W) bool, where other targets are not likelier."""
        return self.segmentation() == target

    def segmentation(self) -> np.ndarray:
        """Return every voxel's target, (D, H, W) uint8 or uint16; 0 where there is none."""
        shape, targets = self._shape, self.targets
        self._look(targets)
        clicks = self._foreground_clicks()
        return compete(shape, ((target, self._part(target, clicks)) for target in targets))

    def part(self, target: int) -> Part:
        """Return the target's logits on a box of the image, with all clicks honoured; read-only."""
        if not self._prompts.get(target):
            raise PromptError(f"target {target} has no prompt. Expected one of {self.targets}.")
        self._look([target])
        return self._part(target, self._foreground_clicks())

    def _part(self, target: int, foreground: "ForegroundClicks") -> Part:
        part, state = self._bare_part(target), self._states[target][-1]
        if not self.options.honour_clicks:
            return part
        scene = self.session.scene
        return honour_clicks(
            part,
            self._clicks(target),
            foreground.of_others(target, part),
            tuple(scene.voxel_mm),
            self.session.cell_mm(state),
            scene.shape,
        )

    def _bare_part(self, target: int) -> Part:
        """Return a target's logits as the network means them, kept until it has another prompt."""
        state = self._states[target][-1]
        kept_for, part = self._parts.pop(target, (None, None))
        if kept_for is not state:
            part = self.session.part(state)
            part.logits.flags.writeable = False
        if part.logits.nbytes + sum(p.logits.nbytes for _, p in self._parts.values()) <= PART_BYTES:
            self._parts[target] = state, part
        return part

    def _look(self, targets: Sequence[int]) -> None:
        """Give the network the prompts that it has not seen yet, those of all targets together."""
        self.session.together([self._advance(target) for target in targets])

    def _advance(self, target: int) -> Generator[list[Look], list[np.ndarray], None]:
        prompts, states = self._prompts[target], self._states[target]
        while len(states) < len(prompts):
            seen, before = _since_mask(prompts[: len(states) + 1]), states[-1] if states else None
            states.append((yield from self.session.advance(before, seen, target)))
        yield from self.session.look_closer(states[-1])

    def _foreground_clicks(self) -> "ForegroundClicks":
        return ForegroundClicks(
            [
                (target, click)
                for target in self.targets
                for click in self._clicks(target)
                if click.is_foreground
            ]
        )

    def _clicks(self, target: int) -> list[Click]:
        said = _since_mask(self._prompts[target])
        return [prompt for prompt in said if isinstance(prompt, Click)]

    def _add(self, target: int, prompt: Prompt) -> None:
        if target != int(target) or not 0 < target <= MAX_LABEL:
            raise PromptError(
                f"target {target}: expected a whole number from 1 to {MAX_LABEL}; 0 is background."
            )
        self._prompts[target].append(prompt)

    @property
    def _shape(self) -> tuple[int, int, int]:
        if self.session is None:
            raise InputError("there is no image yet. Call set_image first.")
        return self.session.scene.shape


def ready_predictor(
    model: Sam3D, rule: CropRule, *, device: str, precision: str, engine: str
) -> Predictor:
    """Make a predictor as ``--device``, ``--precision`` and ``--engine`` say.

    Raises:
        InputError: the machine has no such device, or cannot run the engine.
    """
    where = pick_device(device)
    return Predictor(
        model,
        rule,
        device=where,
        precision=pick_precision(precision, where),
        engine=pick_engine(engine, where),
    )


class ForegroundClicks:
    """Where targets certainly are; there may be thousands of such clicks."""

    def __init__(self, clicks: list[tuple[int, Click]]) -> None:
        self._clicks = [click for _, click in clicks]
        self._targets = np.array([target for target, _ in clicks])
        self._places = np.array([click.zyx for click in self._clicks]).reshape(-1, 3)

    def of_others(self, target: int, part: Part) -> list[Click]:
        """Return the clicks in a part that are other targets'."""
        inside = (self._places >= part.start) & (self._places < part.stop)
        found = np.flatnonzero(inside.all(axis=1) & (self._targets != target))
        return [self._clicks[number] for number in found]


def _since_mask(prompts: list[Prompt]) -> list[Prompt]:
    """Return the prompts from the last mask on: what was said before it is gone."""
    masks = [n for n, prompt in enumerate(prompts) if isinstance(prompt, MaskPrompt)]
    return prompts[masks[-1] :] if masks else prompts


def _require_usable(volume: np.ndarray, affine: np.ndarray) -> None:
    """Raise `InputError` for voxels that are no real numbers, and for grids that are no volume."""
    if volume.dtype.kind not in "buif" or (
        volume.dtype.kind == "f" and not np.isfinite(volume).all()
    ):
        raise InputError(
            f"the image has dtype {volume.dtype}, or voxels that are NaN or infinite. Expected "
            "finite real numbers: fill or convert them first."
        )
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
        raise InputError(
            f"the image's affine is {affine.tolist()}. Expected three independent finite axes, "
            "from a spacing above 0: correct it."
        )
