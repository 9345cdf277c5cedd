"""Compare methods that place crops by prompts and merge their masks, with one network.

    python benchmarks/geometry.py --images val --labels val_gts --checkpoint student.pth --workers 2
    python benchmarks/geometry.py ... --variants prompts "no zoom" --no-boxes

Runs the challenge's protocol (utils/validation/challenge.py) on every case with each variant:

* ``truth``: crops centred on the true mask, which is unknown in the challenge;
* ``prompts``: regions placed by prompts alone, as in `Predictor`;
* ``centre``: FastSAM3D's entry: a crop in the volume's middle, and clicks in volume coordinates,
  which are not converted to the crop's;
* ``last click``: SAM-Med3D's baseline: a crop of 1.5 mm around the last foreground click, without
  other clicks;
* ``from the last answer's mask``: every step starts from the mask of the last answer and adds only
  the new click, as ``prev_pred`` of the challenge's files allows;
* each other variant omits or changes one step of ``prompts``.

Prints mean DSC and NSD over the cases after each step (NSD with the spacing in the order of the
axes); writes JSON.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from segment_anything import Sam3D
from utils.cases.challenge import read_challenge_case
from utils.errors import exit_on_input_error
from utils.files.atomic import atomic_path
from utils.files.npz import read_npz
from utils.prediction.masks import OUTSIDE_LOGIT
from utils.prediction.predictor import Predictor
from utils.prediction.region import Region
from utils.prediction.session import (
    DecodeRequest,
    ImageSession,
    PredictorOptions,
    State,
    StateSteps,
)
from utils.prompts.kinds import BoxPrompt, Click, Prompt
from utils.results.metrics import CHALLENGE_DSC_FLOOR
from utils.run.executor import run_all
from utils.run.flags import new_file, positive_int
from utils.run.network import open_network
from utils.validation.challenge import PredictorAnswerer, evaluate, ranked
from utils.validation.run_challenge import find_challenge_cases
from utils.volumes.crops import grid_on_target
from utils.volumes.geometry import CropGrid, CropRule, bounding_box_centre


class TruthSession(ImageSession):
    """Regions on the truth, in the spacing of training; set by `place_on`."""

    def place_on(self, truth: np.ndarray) -> None:
        """Place a region on every class; ``truth`` (D, H, W) holds ranks, which are target ids."""
        scene = self.scene
        spacing_mm = scene.rule.spacing_for(scene.shape, tuple(scene.voxel_mm))
        self._regions: dict[int, Region] = {}
        for rank in range(1, int(truth.max()) + 1):
            target = truth == rank
            place = partial(
                CropGrid.around, volume_shape=target.shape, affine=scene.affine, rule=scene.rule
            )
            grid = grid_on_target(place, target, bounding_box_centre(target))
            middle = grid.to_volume(((grid.size - 1) / 2,) * 3)
            self._regions[rank] = Region(middle, spacing_mm)

    def view_for_click(self, before: State, click: Click) -> State:
        return before

    def region_for(self, before: State | None, prompts: list[Prompt], target: int) -> Region:
        return self._regions[target]


class CentreSession(ImageSession):
    """One region in the volume's middle; clicks are in the volume's coordinates, not the crop's."""

    def view_for_click(self, before: State, click: Click) -> State:
        return before

    def region_for(self, before: State | None, prompts: list[Prompt], target: int) -> Region:
        middle = tuple((n - 1) / 2 for n in self.scene.shape)
        return Region(middle, self.scene.rule.spacing_mm)

    def request(self, state: State) -> DecodeRequest:
        clicks = [
            (tuple(map(float, click.zyx)), click.is_foreground)
            for click in state.clicks
            if self.scene.holds(state.region, click.zyx)
        ]
        return super().request(state)._replace(clicks=clicks)


class LastClickSession(ImageSession):
    """The last foreground click alone; before the first one, the middle of the box."""

    def advance(self, before: State | None, prompts: list[Prompt], target: int) -> StateSteps:
        places = [p.centre_zyx for p in prompts if isinstance(p, BoxPrompt)]
        places += [p.zyx for p in prompts if isinstance(p, Click) and p.is_foreground]
        z, y, x = (round(c) for c in (places or [prompts[-1].zyx])[-1])
        region = Region((float(z), float(y), float(x)), self.scene.rule.spacing_mm)
        return self.decode(State(region, (Click((z, y, x), True),), None))


class CarrySession(ImageSession):
    """A moved region keeps the previous mask; the predictor would decode all prompts again."""

    def move(self, before: State | None, region: Region, prompts: list[Prompt]) -> StateSteps:
        if before is None or not isinstance(prompts[-1], Click):
            return (yield from super().move(before, region, prompts))
        old, new = self.scene.grid(before.region), self.scene.grid(region)
        mask = old.carry(before.low_res, new, OUTSIDE_LOGIT)
        clicks = before.clicks
        if clicks[-1:] != (prompts[-1],):
            clicks = (*clicks, prompts[-1])
        return (yield from self.decode(replace(before, region=region, clicks=clicks, low_res=mask)))


class FromLastAnswer(PredictorAnswerer):
    """Every step starts from the masks of the last answer and adds only the newest prompts."""

    def answer(self, prompts: list[list[Prompt]], previous: np.ndarray | None) -> np.ndarray:
        for rank, own in enumerate(prompts, start=1):
            new = own[self._given.get(rank, 0) :]
            self._given[rank] = len(own)
            if new and previous is not None and (previous == rank).any():
                self._predictor.add_mask(previous == rank, target=rank)
            for prompt in new:
                self._predictor.add(prompt, target=rank)
        return self._predictor.segmentation()


class Variant(NamedTuple):
    """One way from prompts to masks."""

    session: type[ImageSession]
    options: PredictorOptions
    answerer: type[PredictorAnswerer] = PredictorAnswerer


def variants() -> dict[str, Variant]:
    """Return all variants by name."""
    ours = PredictorOptions()
    still = replace(ours.zoom, passes=0)
    bare = {
        "drop_boxes": False, "only_prompted": False, "honour_clicks": False, "far_share": 1.0,
        "tile_above": 0.0,
    }  # fmt: skip
    options = {
        "prompts": {},
        "no zoom": {"zoom": still},
        "zoom, mask taken over": {},
        "zoom in earlier": {"zoom": replace(ours.zoom, least_fill=0.25)},
        "a click counts everywhere": {"far_share": 1.0},
        "box as a click alone": {"box_mask": False},
        "box not widened": {"zoom": replace(ours.zoom, in_plane=1.0)},
        "contradicted boxes count": {"drop_boxes": False},
        "all components" if ours.only_prompted else "only prompted components": {
            "only_prompted": not ours.only_prompted
        },
        "clicks not enforced": {"honour_clicks": False},
        "no tiles" if ours.tile_above else "tiles": {"tile_above": 0.0 if ours.tile_above else 1.5},
    }
    peers = {
        "truth": Variant(TruthSession, replace(ours, zoom=still)),
        "centre": Variant(CentreSession, replace(ours, zoom=still, **bare)),
        "last click": Variant(LastClickSession, replace(ours, zoom=still, **bare)),
    }
    peers["from the last answer's mask"] = Variant(ImageSession, ours, FromLastAnswer)
    sessions = {"zoom, mask taken over": CarrySession}
    return peers | {
        name: Variant(sessions.get(name, ImageSession), replace(ours, **changes))
        for name, changes in options.items()
    }


class Job(NamedTuple):
    """One case with one variant."""

    variant: str
    image_path: Path
    label_path: Path
    checkpoint: Path
    num_clicks: int
    boxes: bool


@lru_cache(maxsize=1)
def opened(checkpoint: Path) -> tuple[Sam3D, CropRule]:
    """Open the network once in each process."""
    torch.set_num_threads(1)
    return open_network(checkpoint)


def score(job: Job) -> tuple[Job, dict]:
    """Run the protocol on one case; return the means over its classes after each step."""
    variant = variants()[job.variant]
    model, rule = opened(job.checkpoint)
    predictor = Predictor(model, rule, options=variant.options)
    case = read_challenge_case(job.image_path)
    truth = read_npz(job.label_path, ["gts"])["gts"]
    boxes = case.boxes if job.boxes else None
    answerer = variant.answerer(predictor, case.image, case.spacing_xyz)
    # There is no prompt yet: the predictor's session can be replaced.
    scene, decoder = predictor.session.scene, predictor.decoder
    session = variant.session(scene, decoder.cells, variant.options, boxes=decoder.boxes)
    if isinstance(session, TruthSession):
        session.place_on(ranked(truth)[1])
    predictor.session = session
    steps = evaluate(answerer, truth, case.spacing_xyz, boxes, job.num_clicks)
    dsc = steps.dsc.mean(axis=1)
    nsd = steps.nsd.mean(axis=1) * (dsc > CHALLENGE_DSC_FLOOR)
    return job, {
        "case": job.image_path.stem,
        "has_box": boxes is not None,
        "dsc": dsc.tolist(),
        "nsd": nsd.tolist(),
        "seconds": steps.seconds,
        "encoder_runs": predictor.decoder.encoder_runs,
    }


def table(results: dict[str, list[dict]]) -> str:
    """Return a Markdown table, one row a variant; the box step counts only cases with a box."""
    lines = [
        "| variant | DSC: box | clicks | DSC_AUC | NSD: box | clicks | NSD_AUC | encoder runs "
        "a case | s a step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        cells = []
        for key in ("dsc", "nsd"):
            curve = np.mean([row[key][1:] for row in rows], axis=0)
            boxed = [row[key][0] for row in rows if row["has_box"]]
            cells += [f"{np.mean(boxed):.3f}" if boxed else "-"]
            cells += [" ".join(f"{v:.3f}" for v in curve), f"{np.trapezoid(curve):.3f}"]
        runs = np.mean([row["encoder_runs"] for row in rows])
        seconds = np.mean([np.mean(row["seconds"]) for row in rows])
        lines.append(f"| {name} | {' | '.join(cells)} | {runs:.1f} | {seconds:.2f} |")
    return "\n".join(lines)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of challenge NPZ")
    parser.add_argument("--labels", type=Path, help="folder with gts (default: --images)")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=variants(), default=list(variants()))
    parser.add_argument("--num-clicks", type=positive_int, default=5, help="(default: 5)")
    parser.add_argument("--boxes", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--workers", type=positive_int, default=1, help="processes (default: 1)")
    parser.add_argument("--out", type=new_file, default="work_dir/geometry.json")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Score every case with every variant; write the rows and return them by variant."""
    jobs = [
        Job(
            name,
            image.resolve(),
            label.resolve(),
            args.checkpoint.resolve(),
            args.num_clicks,
            args.boxes,
        )
        for name in args.variants
        for image, label in find_challenge_cases(args.images, args.labels)
    ]
    results: dict[str, list[dict]] = {name: [] for name in args.variants}
    for job, row in tqdm(run_all(score, jobs, workers=args.workers), total=len(jobs), unit="case"):
        results[job.variant].append(row)
    for rows in results.values():
        rows.sort(key=lambda row: row["case"])
    with atomic_path(args.out) as temporary:
        temporary.write_text(json.dumps(results))
    return results


@exit_on_input_error
def main() -> None:
    print(table(run(parse_args())))


if __name__ == "__main__":
    main()
