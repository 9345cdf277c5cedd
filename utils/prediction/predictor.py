"""Segment a 3D image from prompts: any size, spacing and orientation, any number of targets.

A target is one object to be segmented; its id is a whole number from 1 on. The network of this
example has random weights; `utils.run.network.open_network` opens a trained one.

>>> import numpy as np
>>> from segment_anything import build_sam3D, network_configs
>>> from utils.prediction.predictor import Predictor
>>> from utils.volumes.geometry import CropRule
>>> predictor = Predictor(build_sam3D(network_configs["tiny"]), CropRule())
>>> volume = np.zeros((20, 48, 40), np.uint8)
>>> volume[5:15, 10:30, 10:30] = 200
>>> predictor.set_image(volume, spacing_xyz=(0.8, 0.8, 2.5))
>>> predictor.add_point((10, 20, 20))
>>> mask = predictor.mask()
>>> mask.shape, mask.dtype
((20, 48, 40), dtype('bool'))

Conventions of all methods:

* Arrays are (D, H, W), that is ``(z, y, x)``. Places are voxel indices of the image's own array,
  counted from 0, in that order.
* Boxes are half-open: the start is inside, the stop is outside.
* Lengths are mm. Only ``spacing_xyz`` is in the order (x, y, z), as challenge files store it.
* A method that raises an error changes nothing. Calls of several threads run in turns.
* A mask depends on the image, the prompts, and the order of a target's own prompts. It does not
  depend on how often masks were computed in between, nor on the order of the targets.

How prompts become masks: utils/prediction/session.py and docs/prediction.md.
"""

import copy
import threading
from collections.abc import Generator, Sequence

import numpy as np
import torch

from segment_anything import CropPredictor, Engine, Sam3D
from utils.errors import InputError
from utils.prediction import checks
from utils.prediction.batching import BatchDecoder
from utils.prediction.honouring import ForegroundClicks
from utils.prediction.lockstep import in_lockstep
from utils.prediction.logit_cache import Asked, LogitCache, LogitsVersion
from utils.prediction.masks import LogitBox, compete
from utils.prediction.prompts import PromptHistory
from utils.prediction.region import Scene
from utils.prediction.session import DecodeRequest, ImageSession, PredictorOptions, State
from utils.prompts.kinds import (
    BoxPrompt,
    Click,
    MaskPrompt,
    Prompt,
    PromptError,
    checked_box,
    checked_click,
    checked_flag,
)
from utils.run.device import pick_device, pick_engine, pick_precision
from utils.run.network import network_errors
from utils.volumes.geometry import CropRule

#: Requests that go through the network at once. A CPU gains nothing from batches. Without batches
#: the other targets do not change a single bit of a target's logits.
GPU_BATCH, CPU_BATCH = 16, 1


class Predictor:
    """One network on one image at a time, with any number of targets.

    Call `set_image`, add prompts, then call `mask`, `segmentation` or `logits`. The network runs in
    these three, for prompts that are new since the last call; to add a prompt takes no time.

    Args:
        model: the network, or `segment_anything.refined` of it; it is not changed.
        rule: the crops that the network was trained on, as `open_network` returns them.
        device: to run on; a CPU by default.
        precision: of the network's arithmetic.
        engine: how the network's kernels run: "eager", "compiled" or "graph", see
            segment_anything/engine.py.
        options: what is done beyond the network; the defaults measured best.

    Raises:
        InputError: an argument is of another type, or the rule is not of this network.
        EngineError: the engine cannot run on this machine.
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
    ) -> None:
        device = torch.device("cpu") if device is None else device
        options = PredictorOptions() if options is None else options
        checks.require_parts(model, rule, device, precision, options)
        batch_size = CPU_BATCH if device.type == "cpu" else GPU_BATCH
        self.network = CropPredictor(model, device, precision, engine, batch_size)
        self.rule, self.options = rule, options
        self.session: ImageSession | None = None
        self.decoder: BatchDecoder | None = None
        self.cache: LogitCache | None = None
        self._turn = threading.RLock()
        self.reset()

    def sibling(self) -> "Predictor":
        """Return a predictor without image that shares this one's network and compiled kernels."""
        other = copy.copy(self)
        other.session, other.decoder, other.cache = None, None, None
        other._turn = threading.RLock()
        other.reset()
        return other

    def set_image(
        self,
        volume: np.ndarray,
        spacing_xyz: Sequence[float] | None = None,
        *,
        affine: np.ndarray | None = None,
        hounsfield: bool = False,
    ) -> None:
        """Set the image. The previous image and all prompts on it are dropped.

        Give either ``spacing_xyz`` or ``affine``.

        Args:
            volume: (D, H, W) finite real numbers of any dtype, with intensities as in training:
                0 to 255 for networks trained on challenge files (`map_intensity` of
                utils/volumes/intensity.py). It is not copied: do not change it while it is in use.
            spacing_xyz: voxel size (x, y, z) in mm. The axes are then taken to grow towards the
                patient's left (x), posterior (y) and superior (z), as in challenge files.
            affine: (4, 4), NIfTI's: from voxel indices (x, y, z) to RAS+ world mm.
            hounsfield: the values are Hounsfield units. They are clamped to -1000..1000, as in
                training.

        Raises:
            InputError: the volume is no array, not 3D or empty, or holds NaN, infinity or values
                too large for the network; or spacing or affine are impossible, or both or neither
                of them are given.
        """
        checks.require_image(volume)
        affine = checks.checked_affine(spacing_xyz, affine)
        hounsfield = checked_flag(hounsfield, "hounsfield")
        with self._turn:
            decoder = BatchDecoder(self.network, volume, hounsfield=hounsfield)
            scene = Scene(volume.shape, affine, self.rule, self.options.zoom)
            self.session = ImageSession(scene, decoder.cells, self.options, boxes=decoder.boxes)
            self.decoder, self.cache = decoder, LogitCache(self.session)
            self.reset()

    def add_point(self, zyx: Sequence[float], positive: bool = True, *, target: int = 1) -> None:
        """Add a click to a target's prompts.

        The clicked voxel will be inside of the target's mask, or outside for a negative click. A
        positive click is also a negative click of all other targets. Earlier prompts still count.

        Args:
            zyx: three whole numbers, the voxel (z, y, x), counted from 0.
            positive: True if the target is at this voxel, False if it is not.
            target: id of the target, from 1 to 65535. A new id starts a new target.

        Raises:
            PromptError: the voxel is not in the image, ``positive`` is neither true nor false, or
                the id is not allowed.
            InputError: there is no image yet.
        """
        self._add(target, checked_click(zyx, positive, self._shape))

    def add_box(
        self,
        start_zyx: Sequence[float],
        stop_zyx: Sequence[float],
        *,
        middle_slice: bool = False,
        target: int = 1,
    ) -> None:
        """Add a box around the whole target to its prompts.

        The box sets size and place of the cube that the network gets. So it is best given first.
        Earlier prompts still count, but clicks outside of that cube have less effect.

        Args:
            start_zyx: the first voxel (z, y, x) inside of the box; fractions are allowed.
            stop_zyx: the first voxel (z, y, x) after the box on each axis. What lies beyond the
                image is cut off.
            middle_slice: the sides along y and x were drawn on one slice in the middle, as in
                challenge files. The target is then expected to be wider in other slices.
            target: id of the target, from 1 to 65535. A new id starts a new target.

        Raises:
            PromptError: the box holds no voxel of the image, or the id is not allowed.
            InputError: there is no image yet.
        """
        box = checked_box(start_zyx, stop_zyx, self._shape, middle_slice=middle_slice)
        self._add(target, box)

    def add_mask(self, mask: np.ndarray, *, target: int = 1) -> None:
        """Start a target from a mask, such as an earlier result to be corrected by clicks.

        The target's earlier prompts no longer count; `undo` brings them back.

        Args:
            mask: (D, H, W) bool, or numbers that are 0 outside and above 0 inside; the image's
                shape. It holds at least one voxel, and is copied.
            target: id of the target, from 1 to 65535. A new id starts a new target.

        Raises:
            PromptError: the mask is empty, no mask or of another shape, or the id is not allowed.
            InputError: there is no image yet.
        """
        self._add(target, checks.mask_prompt(mask, self._shape))

    def add(self, prompt: Prompt, *, target: int = 1) -> None:
        """Add a prompt of any kind.

        Args:
            prompt: a `Click`, `BoxPrompt` or `MaskPrompt` of utils/prompts/kinds.py.
            target: id of the target, from 1 to 65535. A new id starts a new target.

        Raises:
            PromptError: as `add_point`, `add_box` and `add_mask`.
            InputError: there is no image yet.
        """
        if isinstance(prompt, BoxPrompt):
            start, stop, middle = prompt
            self.add_box(start, stop, middle_slice=middle, target=target)
        elif isinstance(prompt, MaskPrompt):
            self.add_mask(prompt.mask, target=target)
        elif isinstance(prompt, Click):
            self.add_point(prompt.zyx, prompt.is_foreground, target=target)
        else:
            raise PromptError(
                f"the prompt is a {type(prompt).__name__}. Expected a Click, BoxPrompt or "
                "MaskPrompt of utils/prompts/kinds.py: give one, or call add_point or add_box."
            )

    def undo(self, *, target: int = 1) -> None:
        """Remove the target's last prompt; the mask is again the one before it.

        Raises:
            PromptError: the target has no prompt.
        """
        target = checks.checked_target(target)
        with self._turn:
            history = self._history(target, "has no prompt to undo")
            kept = 0 if isinstance(history.undo(), MaskPrompt) else len(history.counted)
            del self._states[target][kept:]
            self.cache.forget(target)

    def reset(self, target: int | None = None) -> None:
        """Remove all prompts of a target, or of all targets if none is named; the image stays.

        Raises:
            PromptError: the id is not allowed.
        """
        with self._turn:
            if target is None:
                self._prompts: dict[int, PromptHistory] = {}
                self._states: dict[int, list[State]] = {}  # after each prompt that counts
            else:
                target = checks.checked_target(target)
                for held in (self._prompts, self._states):
                    held.pop(target, None)
            if self.cache is not None:
                self.cache.forget(target)

    @property
    def targets(self) -> list[int]:
        """The ids of all targets that have a prompt, in rising order."""
        return sorted(target for target, history in self._prompts.items() if history)

    def mask(self, *, target: int = 1) -> np.ndarray:
        """Return the mask of one target; see `segmentation`.

        Returns:
            (D, H, W) bool on the image's grid. It is empty if the target has no prompt.

        Raises:
            PromptError: the id is not allowed.
            InputError: as `segmentation`.
        """
        target = checks.checked_target(target)
        return self.segmentation() == target

    def segmentation(self) -> np.ndarray:
        """Return the masks of all targets as one label map.

        A voxel belongs to the target with the highest logit there, if that logit is above 0. So
        masks never overlap.

        Returns:
            (D, H, W) target ids on the image's grid, 0 for background: uint8, or uint16 if an id
            is above 255.

        Raises:
            InputError: there is no image yet, or the network computes NaN or infinity.
        """
        with self._turn:
            shape, targets = self._shape, self.targets
            self._decode_new_prompts(targets)
            clicks, cache = self._foreground_clicks(), self.cache
            cache.new_call()
            parts = ((target, cache.logits(self._asked(target), clicks)) for target in targets)
            return compete(shape, parts)

    def logits(self, target: int) -> LogitBox:
        """Return one target's logits, before targets compete for voxels.

        All clicks are honoured: own ones, and positive ones of other targets as background.

        Returns:
            ``box``: three slices (z, y, x) of the image; ``values``: (d, h, w) float32 of that
            box's shape, above 0 inside of the mask. Outside of the box is background.

        Raises:
            PromptError: the target has no prompt.
            InputError: as `segmentation`.
        """
        target = checks.checked_target(target)
        with self._turn:
            self._history(target, "has no prompt")
            self.cache.new_call()
            logits = self.shared_logits(target)
            return LogitBox(logits.box, logits.values.copy())

    def versions(self) -> dict[int, LogitsVersion]:
        """Return which logits each target with a prompt has, without holding all of them at once.

        Raises:
            InputError: as `segmentation`.
        """
        with self._turn:
            targets = self.targets
            self._decode_new_prompts(targets)
            clicks = self._foreground_clicks()
            self.cache.new_call()
            return {target: self.cache.version(self._asked(target), clicks) for target in targets}

    def shared_logits(self, target: int) -> LogitBox:
        """Return `logits` without a copy; the next prompt of any target may change them."""
        target = checks.checked_target(target)
        with self._turn:
            self._history(target, "has no prompt")
            self._decode_new_prompts([target])
            return self.cache.logits(self._asked(target), self._foreground_clicks())

    def _asked(self, target: int) -> Asked:
        """Return what a target's logits are computed from, once its prompts are decoded."""
        return Asked(target, self._states[target][-1], self._prompts[target].clicks)

    def _decode_new_prompts(self, targets: Sequence[int]) -> None:
        """Decode the prompts that have no state yet, those of all targets in common batches."""
        with network_errors():
            in_lockstep([self._advance(target) for target in targets], self.decoder.decode)

    def _advance(self, target: int) -> Generator[list[DecodeRequest], list[np.ndarray], None]:
        counted, states = self._prompts[target].counted, self._states[target]
        while len(states) < len(counted):
            before = states[-1] if states else None
            until = counted[: len(states) + 1]
            states.append((yield from self.session.advance(before, until, target)))
        yield from self.session.decode_tiles(states[-1])

    def _foreground_clicks(self) -> ForegroundClicks:
        clicks = [(target, c) for target in self.targets for c in self._prompts[target].clicks]
        return ForegroundClicks([pair for pair in clicks if pair[1].is_foreground])

    def _add(self, target: int, prompt: Prompt) -> None:
        target = checks.checked_target(target)
        with self._turn:
            if isinstance(prompt, MaskPrompt):
                # What came before counts again after `undo`; it is then decoded anew.
                self._states.pop(target, None)
            self._prompts.setdefault(target, PromptHistory()).add(prompt)
            self._states.setdefault(target, [])

    def _history(self, target: int, found: str) -> PromptHistory:
        history = self._prompts.get(target)
        if not history:
            raise PromptError(
                f"target {target} {found}. Expected one of {self.targets}: name another target."
            )
        return history

    @property
    def _shape(self) -> tuple[int, int, int]:
        if self.session is None:
            raise InputError("there is no image yet. Call set_image first.")
        return self.session.scene.shape


def ready_predictor(
    model: Sam3D, rule: CropRule, *, device: str, precision: str, engine: str
) -> Predictor:
    """Return a predictor for the values of ``--device``, ``--precision`` and ``--engine``.

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
