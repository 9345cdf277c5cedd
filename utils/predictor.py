"""Segment from prompts alone: any image size, spacing and orientation, any number of targets.

    predictor = Predictor(model, rule)
    predictor.set_image(volume, spacing_xyz=(0.8, 0.8, 2.5))
    predictor.add_point((40, 210, 260), positive=True)
    mask = predictor.mask()                      # (D, H, W) bool on the image's own grid

A target's prompts are taken in order. Each finds the network looking at a region (utils/region.py),
is given to it there with the low-resolution mask so far, and may move the region: then all prompts
so far are given again in the new one. So the answer follows from the prompts alone, whether they
come one by one or all at once.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from segment_anything import NO_CLICK, ClickHistory, Sam3D, decode, low_res_size
from utils.answers import OUTSIDE_LOGIT, SURE_LOGIT, Part, compete, honour_clicks, keep_prompted
from utils.box_prompt import Box, ellipsoid_logits
from utils.click_method import Click
from utils.crops import HU_RANGE, normalise
from utils.errors import InputError
from utils.geometry import CropGrid, CropRule, affine_from_spacing
from utils.prompts import BoxPrompt, MaskPrompt, Prompt, PromptError, checked_box, checked_click
from utils.region import Extent, Region, Scene, ZoomRule, mask_extent
from utils.runtime import autocast
from utils.tiles import blended, lattice

#: Image embeddings kept, the oldest forgotten first: a few MB each.
EMBEDDINGS = 32


@dataclass(frozen=True)
class PredictorOptions:
    """What the predictor does beyond the network; the defaults are what measured best."""

    zoom: ZoomRule = field(default_factory=ZoomRule)
    carry: str = "replay"  # into a moved region: "replay" the prompts, or take the "mask" over
    only_prompted: bool = True  # drop components without a foreground click or a box's middle
    box_mask: bool = True  # a box is a coarse mask as well as a click in its middle
    honour_clicks: bool = True  # clicked voxels end on their side of the mask
    tile_above: float = 1.5  # spacing, over the network's own, from which tiles add detail; 0 = off
    tiles: int = 27  # at most, of a target


@dataclass(frozen=True)
class State:
    """What the network thinks of a target after some of its prompts."""

    region: Region
    clicks: tuple[Click, ...]  # shown to the network, in order; a box's middle among them
    low_res: Tensor | None  # (1, 1, m, m, m) logits; None before anything was decoded


class Predictor:
    """One network on one image at a time, with any number of targets.

    Args:
        rule: the crops that the network was trained on.
    """

    def __init__(
        self,
        model: Sam3D,
        rule: CropRule,
        *,
        device: torch.device | None = None,
        precision: torch.dtype = torch.float32,
        options: PredictorOptions | None = None,
    ) -> None:
        self.device, self.precision = device or torch.device("cpu"), precision
        self.model = model.to(self.device).eval()
        self.rule, self.options = rule, options or PredictorOptions()
        self.encoder_runs = 0
        self._image: np.ndarray | None = None
        self.reset()

    def set_image(
        self,
        volume: np.ndarray,
        spacing_xyz: Sequence[float] | None = None,
        *,
        affine: np.ndarray | None = None,
        hounsfield: bool = False,
    ) -> None:
        """Take an image and forget the prompts of the one before.

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
        self._image, self._hounsfield = volume, hounsfield
        self.scene = Scene(volume.shape, np.asarray(affine, float), self.rule, self.options.zoom)
        self._embeddings: OrderedDict[CropGrid, Tensor] = OrderedDict()
        self.reset()

    def add_point(self, zyx: Sequence[float], positive: bool = True, *, target: int = 1) -> None:
        """Click a voxel: the target is there, or it is not."""
        self._add(target, checked_click(zyx, positive, self._require_image().shape))

    def add_box(
        self,
        start_zyx: Sequence[float],
        stop_zyx: Sequence[float],
        *,
        middle_slice: bool = False,
        target: int = 1,
    ) -> None:
        """Draw a half-open box around the target; see `BoxPrompt` for ``middle_slice``."""
        shape = self._require_image().shape
        self._add(target, checked_box(start_zyx, stop_zyx, shape, middle_slice=middle_slice))

    def add_mask(self, mask: np.ndarray, *, target: int = 1) -> None:
        """Start from a mask (D, H, W), such as an earlier answer."""
        if mask.shape != self._require_image().shape or not mask.any():
            raise PromptError(
                f"the mask has shape {mask.shape} and {int(mask.sum())} voxels. Expected the "
                f"image's shape {self._image.shape} and at least one voxel."
            )
        self._add(target, MaskPrompt(mask.astype(bool, copy=False)))

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

    def reset(self, target: int | None = None) -> None:
        """Forget the prompts of a target, or of all; the image stays."""
        if target is None:
            self._prompts: dict[int, list[Prompt]] = defaultdict(list)
            self._states: dict[int, list[State]] = defaultdict(list)
        else:
            self._prompts.pop(target, None)
            self._states.pop(target, None)

    @property
    def targets(self) -> list[int]:
        """The ids of targets with a prompt, in rising order."""
        return sorted(target for target, prompts in self._prompts.items() if prompts)

    def mask(self, *, target: int = 1) -> np.ndarray:
        """Return the target's mask (D, H, W) bool, whatever other targets say."""
        mask = np.zeros(self._require_image().shape, bool)
        if self._prompts.get(target):
            part = self.part(target)
            mask[part.box] = part.logits > 0
        return mask

    def segmentation(self) -> np.ndarray:
        """Return every voxel's target, (D, H, W) uint8 or uint16; 0 where there is none."""
        shape = self._require_image().shape
        return compete(shape, ((target, self.part(target)) for target in self.targets))

    def part(self, target: int) -> Part:
        """Return the target's logits on the image's voxels, with its clicks honoured."""
        state = self.state(target)
        region = state.region
        low_res = self._numpy(state.low_res)
        part = Part.of(self.scene.grid(region), low_res)
        if 0 < self.options.tile_above * self.rule.spacing_mm < region.spacing_mm:
            part = blended(part, self._tiles(state))
        if self.options.only_prompted:
            part = keep_prompted(part, self._seeds(target))
        if not self.options.honour_clicks:
            return part
        others = [
            prompt
            for other in self.targets
            if other != target
            for prompt in self._prompts[other]
            if isinstance(prompt, Click) and prompt.is_foreground
        ]
        cell_mm = region.spacing_mm * self.rule.size / low_res.shape[0]
        clicks = [p for p in self._prompts[target] if isinstance(p, Click)]
        voxel_mm = tuple(self.scene.voxel_mm)
        return honour_clicks(part, clicks, others, voxel_mm, cell_mm, self.scene.shape)

    @torch.inference_mode()
    def _tiles(self, state: State) -> Iterator[tuple[CropGrid, np.ndarray]]:
        """Look at a large target again through small cubes, each starting from its coarse mask."""
        low_res, grid = self._numpy(state.low_res), self.scene.grid(state.region)
        extent = mask_extent(grid, self._prompted_cells(state))
        if extent is None:
            return
        for region in lattice(self.scene, extent, self.rule.spacing_mm, self.options.tiles):
            tile = self.scene.grid(region)
            seed = grid.carry(low_res, tile, OUTSIDE_LOGIT)
            if (seed > 0).any():
                start = State(region, state.clicks, self._tensor(seed))
                yield tile, self._numpy(self._decode(start).low_res)

    @torch.inference_mode()
    def state(self, target: int) -> State:
        """Give the network the prompts that it has not seen yet; return what it thinks now."""
        prompts, states = self._prompts[target], self._states[target]
        while len(states) < len(prompts):
            seen = prompts[: len(states) + 1]
            states.append(self._advance(states[-1] if states else None, seen, target))
        return states[-1]

    def _advance(self, before: State | None, prompts: list[Prompt], target: int) -> State:
        """Return the target's state after the last of ``prompts``."""
        region = self._region(before, prompts, target)
        if before is not None and region == before.region and isinstance(prompts[-1], Click):
            state = self._click(before, prompts[-1])
        else:
            state = self._begin(before, region, prompts)
        for _ in range(self.options.zoom.passes):
            points = np.array([c.zyx for c in state.clicks if c.is_foreground], float).reshape(
                -1, 3
            )
            mask = self._prompted_cells(state)
            moved = self.scene.next_region(state.region, mask, points)
            if moved is None:
                break
            state = self._begin(state, moved, prompts)
        return state

    def _region(self, before: State | None, prompts: list[Prompt], target: int) -> Region:
        """Return where to look for the last of ``prompts``, before its answer is known."""
        new = prompts[-1]
        if isinstance(new, BoxPrompt):
            return self.scene.about_box(new)
        if isinstance(new, MaskPrompt):
            return self.scene.about(_extent_of(new.mask))
        if before is None:
            return self.scene.about_click(new.zyx)
        if new.is_foreground and not self.scene.holds(before.region, new.zyx):
            points = np.array([new.zyx, *(c.zyx for c in before.clicks if c.is_foreground)], float)
            extent = mask_extent(self.scene.grid(before.region), self._prompted_cells(before))
            return self.scene.widened(before.region, extent, points)
        return before.region

    def _begin(self, before: State | None, region: Region, prompts: list[Prompt]) -> State:
        """Give the prompts anew in a region, or take the mask over into it."""
        if self.options.carry == "mask" and before is not None and before.low_res is not None:
            old, new = self.scene.grid(before.region), self.scene.grid(region)
            values = old.carry(self._numpy(before.low_res), new, OUTSIDE_LOGIT)
            clicks = before.clicks
            if isinstance(prompts[-1], Click) and prompts[-1] not in clicks:
                clicks = (*clicks, prompts[-1])
            low_res = self._tensor(values)
            return self._decode(State(region, clicks, low_res))
        state = State(region, (), None)
        for prompt in prompts:
            if isinstance(prompt, Click):
                state = self._click(state, prompt)
            else:
                state = self._start(state, prompt)
        return state

    def _start(self, state: State, prompt: BoxPrompt | MaskPrompt) -> State:
        """Take a box, as a click in its middle and a coarse mask, or a mask."""
        grid, cells = self.scene.grid(state.region), low_res_size(self.model)
        if isinstance(prompt, MaskPrompt):
            coarse = 2 * SURE_LOGIT * grid.crop(prompt.mask.astype(np.float32)) - SURE_LOGIT
            cell = grid.size // cells
            low_res = coarse.reshape(cells, cell, cells, cell, cells, cell).mean(axis=(1, 3, 5))
            return replace(state, low_res=self._tensor(low_res))
        if self.options.box_mask:
            box = _box_in(grid, self.scene.extent_of(prompt))
            state = replace(state, low_res=self._tensor(ellipsoid_logits(box, grid.size, cells)))
        middle = tuple(round(c) for c in prompt.centre_zyx)
        return self._click(state, Click(middle, True))

    def _click(self, state: State, click: Click) -> State:
        """Show the network one more click; one outside of the region has nothing to change."""
        if not self.scene.holds(state.region, click.zyx) and state.low_res is not None:
            return state
        return self._decode(replace(state, clicks=(*state.clicks, click)))

    def _decode(self, state: State) -> State:
        grid = self.scene.grid(state.region)
        history = ClickHistory(self.model.config.prompt.click_memory)
        for zyx, is_foreground in state.clicks:
            if self.scene.holds(state.region, zyx):
                place = self._place(grid, zyx)
                history.add(
                    torch.tensor([place], dtype=torch.float32, device=self.device),
                    torch.tensor([int(is_foreground)], device=self.device),
                )
        if not len(history):
            history.add(
                torch.zeros(1, 3, device=self.device), torch.tensor([NO_CLICK], device=self.device)
            )
        embedding = self._embedding(grid)
        with autocast(self.device, self.precision):
            low_res, _ = decode(self.model, embedding, history, state.low_res)
        return replace(state, low_res=low_res.float())

    def _place(self, grid: CropGrid, zyx: tuple[int, int, int]) -> tuple[float, float, float]:
        """Return where the network is told that a click is."""
        return grid.to_crop(zyx)

    def _embedding(self, grid: CropGrid) -> Tensor:
        """Return the image embedding of a cube, computed once while it is among the last ones."""
        if grid not in self._embeddings:
            values = grid.crop(self._image)
            if self._hounsfield:
                values = np.clip(values, *HU_RANGE)
            image = torch.from_numpy(normalise(values))[None, None].to(self.device)
            with autocast(self.device, self.precision):
                self._embeddings[grid] = self.model.image_encoder(image)
            self.encoder_runs += 1
            if len(self._embeddings) > EMBEDDINGS:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(grid)
        return self._embeddings[grid]

    def _prompted_cells(self, state: State) -> np.ndarray:
        """Return the cells of the mask that hang together with a foreground click."""
        low_res = self._numpy(state.low_res)
        grid = self.scene.grid(state.region)
        cell = grid.size / low_res.shape[0]
        part = Part(tuple(slice(0, n) for n in low_res.shape), low_res)
        seeds = [
            np.floor((np.array(grid.to_crop(c.zyx)) + 0.5) / cell)
            for c in state.clicks
            if c.is_foreground
        ]
        return keep_prompted(part, seeds).logits > 0

    def _seeds(self, target: int) -> list[tuple[float, float, float]]:
        """Return the voxels at which the target certainly is, a box's middle among them."""
        return [c.zyx for c in self._states[target][-1].clicks if c.is_foreground]

    def _add(self, target: int, prompt: Prompt) -> None:
        if target < 1:
            raise PromptError(f"target {target}: expected an id from 1 on; 0 is background.")
        self._prompts[target].append(prompt)

    def _require_image(self) -> np.ndarray:
        if self._image is None:
            raise InputError("there is no image yet. Call set_image first.")
        return self._image

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))[None, None].to(
            self.device
        )

    @staticmethod
    def _numpy(low_res: Tensor) -> np.ndarray:
        return low_res[0, 0].float().cpu().numpy()


def _extent_of(mask: np.ndarray) -> Extent:
    ends = []
    for axis in range(3):
        rows = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        ends.append((rows[0] - 0.5, rows[-1] + 0.5))
    low, high = np.transpose(ends)
    return Extent(low, high)


def _box_in(grid: CropGrid, extent: Extent) -> Box:
    """Return an extent on the image as a half-open box in crop voxels."""
    corners = np.array([grid.to_crop(tuple(extent.low)), grid.to_crop(tuple(extent.high))]) + 0.5
    return Box(tuple(corners.min(axis=0)), tuple(corners.max(axis=0)))
