"""One image looked at by one network: what it thinks of a target after some prompts.

A target's prompts are taken in order. Each is given to the network in the current region
(region.py) with the low-resolution mask so far, and may move the region, where all prompts are
given anew. So an answer follows from the prompts alone, whether they come one by one or together.

What needs the network is a generator that yields `Look`s and is sent low-resolution logits, so
that many targets look together: `ImageSession.together`.
"""

from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything import CropPredictor, Prompted
from utils.prediction.lockstep import in_lockstep
from utils.prediction.masks import OUTSIDE_LOGIT, SURE_LOGIT, Part, keep_prompted, united
from utils.prediction.region import Region, Scene, ZoomRule, extent_in, extent_of
from utils.prediction.tiles import blended, lattice
from utils.prompts.box import Box, ellipsoid_logits
from utils.prompts.kinds import BoxPrompt, Click, MaskPrompt, Prompt
from utils.volumes.crops import cut_image
from utils.volumes.geometry import CropGrid, CropRule, Triple

#: Bytes of image embeddings that are kept, the oldest forgotten first: hundreds of them.
EMBEDDING_BYTES = 2**30
#: A click so many times farther away than a region reaches is about another part of the target.
FAR = 2.0
#: What a cell must hold of a mask, somewhere, to count where the mask is thinner than a cell.
THIN = 0.1


@dataclass(frozen=True)
class PredictorOptions:
    """What is done beyond the network; the defaults are what measured best (docs/results.md)."""

    zoom: ZoomRule = field(default_factory=ZoomRule)
    carry: str = "replay"  # in a moved region "replay" the prompts, or take the "mask" over
    box_mask: bool = True  # a box is a coarse mask as well as a click in its middle
    far_share: float = 0.15  # of a later click's change that counts far away from it
    near_cells: float = 6.0  # low-resolution cells within which it counts in full
    only_prompted: bool = True  # drop components without a foreground click or a box's middle
    honour_clicks: bool = True  # clicked voxels end on their side of the mask
    tile_above: float = 1.5  # spacing, over the network's own, from which tiles add detail; 0 = off
    tiles: int = 27  # at most, of a target


@dataclass(frozen=True, eq=False)
class State:
    """What the network thinks of a target after some of its prompts."""

    region: Region
    # Shown to the network, in order; a box's middle, which may lie between voxels, among them.
    clicks: tuple[Click, ...]
    low_res: np.ndarray | None  # (m, m, m) logits; None before anything was decoded
    aside: tuple["State", ...] = ()  # of parts of the target that are too far away to be seen here

    @property
    def seeds(self) -> np.ndarray:
        """The voxels (n, 3) at which the target is."""
        return np.array([c.zyx for c in self.clicks if c.is_foreground], float).reshape(-1, 3)


class Look(NamedTuple):
    """What the network is asked: a target's low-resolution logits (m, m, m) in a cube."""

    grid: CropGrid
    clicks: Sequence[tuple[Triple, bool]]  # crop voxels, and whether the target is there
    low_res: np.ndarray | None  # (m, m, m) logits to start from


#: A computation that looks, again and again, and ends with a state.
Looking = Generator[list[Look], list[np.ndarray], State]


class ImageSession:
    """An image, its embeddings so far, and how prompts become states and states become masks.

    Args:
        image: (D, H, W) real numbers.
        affine: NIfTI's.
        rule: the crops that the network was trained on.
        hounsfield: values are Hounsfield units: clamp them as in training.
    """

    def __init__(
        self,
        network: CropPredictor,
        image: np.ndarray,
        affine: np.ndarray,
        rule: CropRule,
        options: PredictorOptions,
        *,
        hounsfield: bool = False,
    ) -> None:
        self.network, self.options = network, options
        self.scene = Scene(image.shape, np.asarray(affine, float), rule, options.zoom)
        self.encoder_runs = 0
        self._image, self._hounsfield = image, hounsfield
        self._cells = network.model.config.low_res_size
        self._embeddings: OrderedDict[CropGrid, Tensor] = OrderedDict()
        self._tiled: WeakKeyDictionary[State, list] = WeakKeyDictionary()

    def together(self, computations: Sequence[Generator[list[Look], list, Any]]) -> list:
        """Return what computations return; the network answers all that look at a time together."""
        return in_lockstep(computations, self._answers)

    def advance(self, before: State | None, prompts: list[Prompt], target: int) -> Looking:
        """Return the target's state after the last of ``prompts``, from the one before it."""
        new = prompts[-1]
        outside = isinstance(new, Click) and before is not None
        if outside and not self.scene.holds(before.region, new.zyx):
            before = self.turned(before, new)
        region = self.region_for(before, prompts, target)
        if before is not None and region == before.region and isinstance(new, Click):
            state = yield from self._click(before, new)
        else:
            state = yield from self._move(before, region, prompts)
        for _ in range(self.options.zoom.passes):
            region = self.scene.next_region(state.region, self.prompted_cells(state), state.seeds)
            if region is None:
                break
            state = yield from self._move(state, region, prompts)
        return state

    def turned(self, before: State, click: Click) -> State:
        """Return the state of the part of the target that a click outside of the region is about.

        That is a part seen before; or a new one, where one region for both would show too little;
        or the present one.
        """
        for view in before.aside:
            if self.scene.holds(view.region, click.zyx):
                rest = tuple(other for other in before.aside if other is not view)
                return replace(view, aside=(*rest, replace(before, aside=())))
        widened = self._widened(before, click)
        if not click.is_foreground or widened.spacing_mm <= FAR * before.region.spacing_mm:
            return before
        aside = (*before.aside, replace(before, aside=()))
        return State(self.scene.about_click(click.zyx), (), None, aside)

    def _widened(self, before: State, click: Click) -> Region:
        extent = extent_in(self.scene.grid(before.region), self.prompted_cells(before))
        return self.scene.widened(before.region, extent, np.vstack([click.zyx, before.seeds]))

    def region_for(self, before: State | None, prompts: list[Prompt], target: int) -> Region:
        """Return where to look for the last of ``prompts``, before its answer is known."""
        new = prompts[-1]
        if isinstance(new, BoxPrompt):
            return self.scene.about_box(new)
        if isinstance(new, MaskPrompt):
            return self.scene.about(extent_of(new.mask))
        if before is None:
            return self.scene.about_click(new.zyx)
        if new.is_foreground and not self.scene.holds(before.region, new.zyx):
            return self._widened(before, new)
        return before.region

    def look_closer(self, state: State) -> Generator[list[Look], list[np.ndarray], None]:
        """Look at large parts of a target through small cubes, unless that is done already."""
        least_mm = self.options.tile_above * self.scene.rule.spacing_mm
        for view in (state, *state.aside):
            if 0 < least_mm < view.region.spacing_mm and view not in self._tiled:
                looks = self._tiles(view)
                found = yield looks
                grids = [look.grid for look in looks]
                self._tiled[view] = list(zip(grids, found, strict=True))

    def part(self, state: State) -> Part:
        """Return the logits on the image's voxels, in the detail that was looked at."""
        return united([self._part(view) for view in (state, *state.aside)])

    def _part(self, state: State) -> Part:
        grid = self.scene.grid(state.region)
        part = Part.of(grid, state.low_res)
        if state in self._tiled:
            part = blended(part, self._tiled[state])
        return keep_prompted(part, state.seeds) if self.options.only_prompted else part

    def cell_mm(self, state: State) -> float:
        """Return the side of a cell of the state's low-resolution mask."""
        return state.region.spacing_mm * self.scene.rule.size / self._cells

    def prompted_cells(self, state: State) -> np.ndarray:
        """Return the cells (m, m, m) of the mask that hang together with a foreground click."""
        grid = self.scene.grid(state.region)
        whole = Part((slice(0, self._cells),) * 3, state.low_res)
        cell = grid.size / self._cells
        seeds = [np.floor((np.array(grid.to_crop(zyx)) + 0.5) / cell) for zyx in state.seeds]
        return keep_prompted(whole, seeds).logits > 0

    def place(self, grid: CropGrid, zyx: Triple) -> Triple:
        """Return where in a crop the network is told that a click is."""
        return grid.to_crop(zyx)

    def decode(self, state: State) -> Looking:
        """Give the network the state's clicks that its region holds, and its mask."""
        (low_res,) = yield [self._look(state)]
        return replace(state, low_res=low_res)

    def _look(self, state: State) -> Look:
        grid = self.scene.grid(state.region)
        clicks = [
            (self.place(grid, click.zyx), click.is_foreground)
            for click in state.clicks
            if self.scene.holds(state.region, click.zyx)
        ]
        return Look(grid, clicks, state.low_res)

    def _move(self, before: State | None, region: Region, prompts: list[Prompt]) -> Looking:
        """Take the mask over into another region, or give all prompts anew there."""
        takes_clicks = isinstance(prompts[-1], Click)
        if takes_clicks and self.options.carry == "mask" and before is not None:
            old, new = self.scene.grid(before.region), self.scene.grid(region)
            mask = old.carry(before.low_res, new, OUTSIDE_LOGIT)
            clicks = before.clicks
            if clicks[-1:] != (prompts[-1],):
                clicks = (*clicks, prompts[-1])
            return (yield from self.decode(State(region, clicks, mask, before.aside)))
        state = State(region, (), None, before.aside if before and takes_clicks else ())
        for prompt in prompts:
            is_click = isinstance(prompt, Click)
            if not is_click:
                state = yield from self._start(state, prompt)
            elif self.scene.holds(region, prompt.zyx):  # others are about other parts
                state = yield from self._click(state, prompt)
        return state if state.low_res is not None else (yield from self.decode(state))

    def _start(self, state: State, prompt: BoxPrompt | MaskPrompt) -> Looking:
        """Take a box, as a click in its middle and a coarse mask, or a mask."""
        grid = self.scene.grid(state.region)
        if isinstance(prompt, MaskPrompt):
            share = grid.crop(prompt.mask.view(np.uint8))
            logits = SURE_LOGIT * (2 * _shrunk(share, self._cells) - 1)
            return replace(state, low_res=logits)
        if self.options.box_mask:
            logits = ellipsoid_logits(self._box_in(grid, prompt), grid.size, self._cells)
            state = replace(state, low_res=logits)
        middle = Click(prompt.centre_zyx, True)
        return (yield from self.decode(replace(state, clicks=(*state.clicks, middle))))

    def _box_in(self, grid: CropGrid, prompt: BoxPrompt) -> Box:
        """Return how far the target reaches, as a half-open box in crop voxels."""
        extent = self.scene.extent_of_box(prompt)
        corners = np.array([grid.to_crop(tuple(extent.low)), grid.to_crop(tuple(extent.high))])
        return Box(tuple(corners.min(axis=0) + 0.5), tuple(corners.max(axis=0) + 0.5))

    def _click(self, state: State, click: Click) -> Looking:
        """Show the network one more click; one outside of the region has nothing to change."""
        if state.low_res is not None and not self.scene.holds(state.region, click.zyx):
            return state
        new = yield from self.decode(replace(state, clicks=(*state.clicks, click)))
        if state.low_res is None:
            return new
        return replace(new, low_res=self._near(state, new, click))

    def _near(self, old: State, new: State, click: Click) -> np.ndarray:
        """Let a click change the mask in full where it is, and by a share far away."""
        place = np.array(self.scene.grid(new.region).to_crop(click.zyx))
        middle = (place + 0.5) * self._cells / self.scene.rule.size - 0.5
        squares = [((np.arange(self._cells) - m) / self.options.near_cells) ** 2 for m in middle]
        z, y, x = np.ix_(*squares)
        near = np.exp(-(z + y + x) / 2)
        weight = (near + (1 - near) * self.options.far_share).astype(np.float32)
        return old.low_res + weight * (new.low_res - old.low_res)

    def _tiles(self, state: State) -> list[Look]:
        """Return the small cubes that a large target reaches into, each with its coarse mask."""
        grid = self.scene.grid(state.region)
        extent = extent_in(grid, self.prompted_cells(state))
        if extent is None:
            return []
        spacing_mm = max(self.scene.rule.spacing_mm, self.scene.finest_mm)
        looks = []
        for region in lattice(self.scene, extent, spacing_mm, self.options.tiles):
            coarse = grid.carry(state.low_res, self.scene.grid(region), OUTSIDE_LOGIT)
            if (coarse > 0).any():
                looks.append(self._look(State(region, state.clicks, coarse)))
        return looks

    def _answers(self, looks: Sequence[Look]) -> list[np.ndarray]:
        """Ask the network, about as many targets at once as its batches take."""
        found: dict[int, np.ndarray] = {}
        # Looks with equally many clicks, which share batches, side by side.
        order = sorted(range(len(looks)), key=lambda number: len(looks[number].clicks))
        for first in range(0, len(order), self.network.batch_size):
            numbers = order[first : first + self.network.batch_size]
            logits = self._answer_batch([looks[number] for number in numbers])
            found.update(zip(numbers, logits, strict=True))
        return [found[number] for number in range(len(looks))]

    def _answer_batch(self, looks: Sequence[Look]) -> list[np.ndarray]:
        embeddings = self._embedded(look.grid for look in looks)
        nothing = np.zeros((self._cells,) * 3, np.float32)
        given = [nothing if look.low_res is None else look.low_res for look in looks]
        masks = torch.from_numpy(np.stack(given, dtype=np.float32))[:, None]
        masks = masks.to(self.network.device).split(1)
        targets = [
            Prompted(embeddings[look.grid], look.clicks, mask)
            for look, mask in zip(looks, masks, strict=True)
        ]
        low_res = torch.cat(self.network.decode_all(targets)).cpu().numpy()
        return [logits.copy() for logits in low_res[:, 0]]  # a view would keep all of the batch

    def _embedded(self, grids: Iterable[CropGrid]) -> dict[CropGrid, Tensor]:
        """Return image embeddings of cubes, computed once while they are among the last ones."""
        grids = list(dict.fromkeys(grids))
        new = [grid for grid in grids if grid not in self._embeddings]
        crops = [cut_image(grid, self._image, hounsfield=self._hounsfield) for grid in new]
        encoded = self.network.encode_all([torch.from_numpy(crop) for crop in crops])
        self._embeddings.update(zip(new, encoded, strict=True))
        self.encoder_runs += len(new)
        for grid in grids:
            self._embeddings.move_to_end(grid)
        wanted = {grid: self._embeddings[grid] for grid in grids}
        while sum(each.nbytes for each in self._embeddings.values()) > EMBEDDING_BYTES:
            self._embeddings.popitem(last=False)
        return wanted


def _shrunk(mask: np.ndarray, cells: int) -> np.ndarray:
    """Average shares (S, S, S) down to (cells, cells, cells); what is too thin keeps its cells."""
    shares = torch.from_numpy(mask)[None, None]
    cell = mask.shape[0] // cells
    mean = F.avg_pool3d(shares, cell)
    lost = (F.max_pool3d(shares, cell) >= THIN) & (F.max_pool3d(mean, 3, 1, 1) < 0.5)
    return torch.where(lost, 1.0, mean)[0, 0].numpy()
