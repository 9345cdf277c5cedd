"""One image: turn each target's prompts into states, and states into logits on the image.

A target's prompts are taken in order. Each prompt is decoded in the target's present region
(region.py), together with the low-resolution mask so far. The new mask may move the region; then
all prompts are decoded again in the new region. So a mask depends on the prompts and their order
alone, not on whether the caller asked for masks in between.

The network is not called here. A computation that needs it is a generator: it yields
`DecodeRequest`s and is sent their logits. So the requests of many targets share batches, see
lockstep.py and batching.py.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from utils.errors import InputError, require_number
from utils.prediction.masks import (
    OUTSIDE_LOGIT,
    SURE_LOGIT,
    LogitBox,
    cell_means,
    keep_prompted,
    merge,
)
from utils.prediction.region import Extent, Region, Scene, ZoomRule, extent_in, extent_of
from utils.prediction.tiles import blended, lattice
from utils.prompts.box import Box, ellipsoid_logits
from utils.prompts.kinds import BoxPrompt, Click, MaskPrompt, Prompt
from utils.prompts.standing import drops_box, standing
from utils.volumes.geometry import CropGrid, Triple

#: A click that would need a region this many times larger starts a second region of its target.
FAR = 2.0
#: Steps from the first to each of the eight cells around a place.
EIGHT_CELLS = np.array(list(np.ndindex(2, 2, 2)))
#: The options that are true or false.
FLAGS = ("box_mask", "drop_boxes", "only_prompted", "honour_clicks")


@dataclass(frozen=True)
class PredictorOptions:
    """The predictor's steps around the network; docs/results.md has measurements.

    Raises:
        InputError: a field is out of its range.
    """

    zoom: ZoomRule = field(default_factory=ZoomRule)
    box_mask: bool = True  # a box is a coarse mask as well as its corners, or a click in its middle
    drop_boxes: bool = True  # a box that clicks contradict no longer counts (`standing`)
    far_share: float = 0.15  # share of a later click's change that is kept far away from the click
    near_share: float = 0.1875  # of the cube's edge, around a click: the change is kept whole
    only_prompted: bool = True  # drop components that hold no foreground click and touch no box
    honour_clicks: bool = True  # clicked voxels end inside (foreground) or outside
    tile_above: float = 1.5  # spacing, over the network's own, from which tiles add detail; 0 = off
    tiles: int = 27  # at most, for one target
    most_clicks: int = 64  # the newest ones that are decoded; earlier ones act through the mask

    def __post_init__(self) -> None:
        for name, kind in (("zoom", ZoomRule), *((flag, bool) for flag in FLAGS)):
            if not isinstance(getattr(self, name), kind):
                raise InputError(
                    f"PredictorOptions.{name}: found {getattr(self, name)!r}, expected a "
                    f"{kind.__name__}."
                )
        require_number("PredictorOptions.far_share", self.far_share, 0, 1)
        require_number("PredictorOptions.near_share", self.near_share, 1e-3, 1e3)
        require_number("PredictorOptions.tile_above", self.tile_above, 0, 1e3)
        require_number("PredictorOptions.tiles", self.tiles, 1, 10_000, whole=True)
        require_number("PredictorOptions.most_clicks", self.most_clicks, 1, 10_000, whole=True)


class DecodeRequest(NamedTuple):
    """One request to the network: decode these clicks in this cube, to logits (m, m, m)."""

    grid: CropGrid
    clicks: Sequence[tuple[Triple, bool]]  # crop voxels, and True for foreground
    low_res: np.ndarray | None  # (m, m, m) logits to start from; None: no mask
    box: Box | None = None  # crop voxels; for networks that take boxes


@dataclass(frozen=True, eq=False)
class State:
    """A target's mask in one region, after some of the target's prompts.

    Parts of a target may lie too far apart for one region. Then each has a region of its own, and
    the state of the region clicked last holds the states of the others.
    """

    region: Region
    # Given to the network, in order. In networks that take no boxes the middle of a box counts as a
    # click; it may lie between voxels.
    clicks: tuple[Click, ...]
    low_res: np.ndarray | None  # (m, m, m) logits; None before anything was decoded
    other_views: tuple["State", ...] = ()  # of the same target; these have no other views
    box: Extent | None = None  # of the newest box, array coordinates; for networks that take boxes

    @cached_property
    def seeds(self) -> np.ndarray:
        """The places (n, 3) of the foreground clicks, array coordinates."""
        return np.array([c.zyx for c in self.clicks if c.is_foreground], float).reshape(-1, 3)


#: A computation that ends with a state. It is sent one answer for each request that it yields.
StateSteps = Generator[list[DecodeRequest], list[np.ndarray], State]


class ImageSession:
    """An image's grid, and how prompts become states and states become logits on it.

    Args:
        scene: the image's grid, and the crops that the network was trained on.
        cells: edge of the network's low-resolution masks.
        boxes: the network takes boxes; a click in a box's middle stands for it otherwise.
    """

    def __init__(
        self, scene: Scene, cells: int, options: PredictorOptions, *, boxes: bool = False
    ) -> None:
        self.scene, self.cells, self.options, self.boxes = scene, cells, options, boxes
        self._tiled: WeakKeyDictionary[State, list] = WeakKeyDictionary()

    def advance(self, before: State | None, prompts: list[Prompt], target: int) -> StateSteps:
        """Return the target's state after its newest prompt.

        Args:
            before: the state without that prompt; None if it is the first.
            prompts: the target's, in order, the newest last. A mask can only be the first.
            target: its id, for subclasses that use more of a target than its prompts.
        """
        kept = standing(prompts) if self.options.drop_boxes else prompts
        if len(kept) < len(prompts) and (drops_box(prompts) or _is_empty(before)):
            return (yield from self._without_box(before, kept, target))
        return (yield from self._next(before, kept, target))

    def _next(self, before: State | None, prompts: list[Prompt], target: int) -> StateSteps:
        """Return the state after the newest prompt, where all prompts count."""
        new = prompts[-1]
        later_click = isinstance(new, Click) and before is not None
        if later_click and not self.scene.holds(before.region, new.zyx):
            before = self.view_for_click(before, new)
        region = self.region_for(before, prompts, target)
        if before is not None and region == before.region and isinstance(new, Click):
            state = yield from self._click(before, new)
        else:
            state = yield from self.move(before, region, prompts)
        for _ in range(self.options.zoom.passes):
            region = self.scene.next_region(state.region, self.prompted_cells(state), state.seeds)
            if region is None:
                break
            state = yield from self.move(state, region, prompts)
        return state

    def _without_box(self, before: State, prompts: list[Prompt], target: int) -> StateSteps:
        """Return the state as if a box that was dropped had never been given.

        Background clicks alone give an empty mask.
        """
        if all(_is_background(prompt) for prompt in prompts):
            nothing = np.full((self.cells,) * 3, -SURE_LOGIT, np.float32)
            return State(before.region, tuple(prompts), nothing)
        state = None
        for count in range(1, len(prompts) + 1):
            state = yield from self._next(state, prompts[:count], target)
        return state

    def view_for_click(self, before: State, click: Click) -> State:
        """Return the state that a click outside of the present region belongs to.

        If the region of another view holds the click, that view is returned. Otherwise a foreground
        click that lies far away (`FAR`) gets a new view, and any other click the present view.
        """
        for view in before.other_views:
            if self.scene.holds(view.region, click.zyx):
                rest = tuple(other for other in before.other_views if other is not view)
                return replace(view, other_views=(*rest, replace(before, other_views=())))
        widened = self._widened(before, click)
        if not click.is_foreground or widened.spacing_mm <= FAR * before.region.spacing_mm:
            return before
        others = (*before.other_views, replace(before, other_views=()))
        return State(self.scene.about_click(click.zyx), (), None, others)

    def region_for(self, before: State | None, prompts: list[Prompt], target: int) -> Region:
        """Return the region in which to decode the newest prompt; arguments as for `advance`."""
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

    def move(self, before: State | None, region: Region, prompts: list[Prompt]) -> StateSteps:
        """Decode all prompts again in another region; after a click, keep the other views."""
        views = before.other_views if before and isinstance(prompts[-1], Click) else ()
        state = State(region, (), None, views)
        for prompt in prompts:
            if not isinstance(prompt, Click):
                state = yield from self._start(state, prompt)
            elif self.scene.holds(region, prompt.zyx):  # other clicks belong to other views
                state = yield from self._click(state, prompt)
        return state if state.low_res is not None else (yield from self.decode(state))

    def decode(self, state: State) -> StateSteps:
        """Return the state with the mask that the network decodes from its clicks and its mask."""
        (low_res,) = yield [self.request(state)]
        return replace(state, low_res=low_res)

    def request(self, state: State) -> DecodeRequest:
        """Return the request to decode what the state's region holds: box and newest clicks."""
        grid = self.scene.grid(state.region)
        held = (c for c in reversed(state.clicks) if self.scene.holds(state.region, c.zyx))
        newest = list(islice(held, self.options.most_clicks))[::-1]
        clicks = [(grid.to_crop(click.zyx), click.is_foreground) for click in newest]
        box = None if state.box is None else _box_in(grid, state.box).within(grid.size)
        return DecodeRequest(grid, clicks, state.low_res, box)

    def decode_tiles(self, state: State) -> Generator[list[DecodeRequest], list[np.ndarray], None]:
        """Decode the views of a large target in small cubes too, unless that is done already."""
        least_mm = self.options.tile_above * self.scene.rule.spacing_mm
        for view in (state, *state.other_views):
            if 0 < least_mm < view.region.spacing_mm and view not in self._tiled:
                requests = self._tile_requests(view)
                found = yield requests
                grids = [request.grid for request in requests]
                self._tiled[view] = list(zip(grids, found, strict=True))

    def logits(self, state: State) -> LogitBox:
        """Return a target's logits on the image's voxels, of all views and all tiles so far."""
        return merge([self._view_logits(view) for view in (state, *state.other_views)])

    def cell_mm(self, state: State) -> float:
        """Return the edge of a cell of the state's low-resolution mask."""
        return state.region.spacing_mm * self.scene.rule.size / self.cells

    def prompted_cells(self, state: State) -> np.ndarray:
        """Return the cells (m, m, m) bool of the mask that are connected to click or box."""
        return self._prompted(state, np.floor(self._seed_cells(state) + 0.5)) > 0

    def _seed_cells(self, state: State) -> np.ndarray:
        """Return the places (n, 3) of the foreground clicks in cells, of which 0 is a middle."""
        grid = self.scene.grid(state.region)
        return (np.transpose(grid.to_crop(state.seeds.T)) + 0.5) * self.cells / grid.size - 0.5

    def _prompted(self, state: State, seeds: np.ndarray) -> np.ndarray:
        """Return the logits (m, m, m) without the components that no seed or box touches."""
        grid = self.scene.grid(state.region)
        whole = LogitBox((slice(0, self.cells),) * 3, state.low_res)
        cell = grid.size / self.cells
        faces = None if state.box is None else np.array(_box_in(grid, state.box)) / cell - 0.5
        return keep_prompted(whole, seeds, None if faces is None else Extent(*faces)).values

    def _widened(self, before: State, click: Click) -> Region:
        extent = extent_in(self.scene.grid(before.region), self.prompted_cells(before))
        return self.scene.widened(before.region, extent, np.vstack([click.zyx, before.seeds]))

    def _start(self, state: State, prompt: BoxPrompt | MaskPrompt) -> StateSteps:
        """Use a mask prompt unchanged; decode a box as a coarse mask, and corners or middle."""
        grid = self.scene.grid(state.region)
        if isinstance(prompt, MaskPrompt):
            share = cell_means(grid.crop(prompt.mask.view(np.uint8)), self.cells)
            return replace(state, low_res=SURE_LOGIT * (2 * share - 1))
        extent = self.scene.extent_of_box(prompt)
        if self.options.box_mask:
            logits = ellipsoid_logits(_box_in(grid, extent), grid.size, self.cells)
            state = replace(state, low_res=logits)
        if self.boxes:
            return (yield from self.decode(replace(state, box=extent)))
        middle = Click(prompt.centre_zyx, True)
        return (yield from self.decode(replace(state, clicks=(*state.clicks, middle))))

    def _click(self, state: State, click: Click) -> StateSteps:
        """Decode one more click; outside of the region it changes nothing once a mask exists."""
        if state.low_res is not None and not self.scene.holds(state.region, click.zyx):
            return state
        new = yield from self.decode(replace(state, clicks=(*state.clicks, click)))
        if state.low_res is None:
            return new
        return replace(new, low_res=self._limited_change(state, new, click))

    def _limited_change(self, old: State, new: State, click: Click) -> np.ndarray:
        """Return logits that change in full near the click, and by ``far_share`` far away."""
        place = np.array(self.scene.grid(new.region).to_crop(click.zyx))
        middle = (place + 0.5) * self.cells / self.scene.rule.size - 0.5
        near_cells = self.options.near_share * self.cells
        squares = [((np.arange(self.cells) - m) / near_cells) ** 2 for m in middle]
        z, y, x = np.ix_(*squares)
        near = np.exp(-(z + y + x) / 2)
        weight = (near + (1 - near) * self.options.far_share).astype(np.float32)
        return old.low_res + weight * (new.low_res - old.low_res)

    def _tile_requests(self, state: State) -> list[DecodeRequest]:
        """Return a request for each tile that the mask reaches into, with the mask in that tile."""
        grid = self.scene.grid(state.region)
        extent = extent_in(grid, self.prompted_cells(state))
        if extent is None:
            return []
        spacing_mm = max(self.scene.rule.spacing_mm, self.scene.finest_mm)
        requests = []
        for region in lattice(self.scene, extent, spacing_mm, self.options.tiles):
            coarse = grid.carry(state.low_res, self.scene.grid(region), OUTSIDE_LOGIT)
            if (coarse > 0).any():
                requests.append(self.request(State(region, state.clicks, coarse, box=state.box)))
        return requests

    def _view_logits(self, state: State) -> LogitBox:
        grid = self.scene.grid(state.region)
        if state in self._tiled:
            logits = blended(LogitBox.from_low_res(grid, state.low_res), self._tiled[state])
            if self.options.only_prompted:
                logits = keep_prompted(logits, state.seeds, state.box)
            return logits
        low_res = state.low_res
        if self.options.only_prompted:
            # Components of cells are found much faster than those of the image's voxels. A voxel's
            # logit is interpolated from eight cells, so any of them makes it part of a component.
            first = np.floor(self._seed_cells(state))[:, None]
            low_res = self._prompted(state, (first + EIGHT_CELLS).reshape(-1, 3))
        return LogitBox.from_low_res(grid, low_res)


def _is_background(prompt: Prompt) -> bool:
    return isinstance(prompt, Click) and not prompt.is_foreground


def _is_empty(state: State) -> bool:
    """Tell whether a target has nothing but background clicks."""
    return state.box is None and all(_is_background(click) for click in state.clicks)


def _box_in(grid: CropGrid, extent: Extent) -> Box:
    """Return an extent on the image as a half-open box in crop voxels; it may exceed the crop."""
    corners = np.array([grid.to_crop(tuple(extent.low)), grid.to_crop(tuple(extent.high))]) + 0.5
    return Box(tuple(corners.min(axis=0).tolist()), tuple(corners.max(axis=0).tolist()))
