"""Make a release file from a trained network: weights in half precision, and where they come from.

Reads   --checkpoint  student.pth, teacher.pt, best.pt or last.pt of a training
        --recipe      args.json of the trainings behind it (default: the one beside the checkpoint)
        --compare     a crop cache of preparelabel.py, to compare masks on
Writes  --out         the release file, and beside it NAME.sha256

The file is a checkpoint like any other: all scripts open it with --checkpoint. On disk matrices and
kernels take two bytes a weight; biases and norms, half a percent of the weights, stay float32,
since rounding them changed the masks most. In memory all are float32. The file also holds the crop
rule, the data sets, the flags of the trainings without folders of this machine, and the commit of
the code that wrote it.

    python -m utils.training.release --checkpoint work_dir/student/student.pth \\
        --recipe work_dir/teacher/args.json work_dir/student/args.json \\
        --compare work_dir/crops_val --out weights/student.pth
    python -m utils.training.release --checkpoint work_dir/teacher/best.pt --out weights/teacher.pth
"""

import argparse
import copy
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segment_anything import (
    Interaction,
    Sam3D,
    checkpoint_payload,
    fingerprint,
    read_checkpoint,
    upsample,
)
from segment_anything.checkpoint import HASH_SUFFIX, sha256_of
from utils.cases.choice import evenly_spaced
from utils.errors import InputError, exit_on_input_error
from utils.files.answers import require_distinct_files
from utils.files.atomic import atomic_path
from utils.files.hub import is_address
from utils.files.strict_json import read_json
from utils.prompts.click_method import challenge_click
from utils.results.metrics import dsc
from utils.run.flags import positive_int
from utils.run.folder import FLAGS
from utils.run.network import checkpoint_errors, open_network, save_payload
from utils.training.checkpoint import RUN
from utils.training.crop_cache import CropIndex, read_index
from utils.training.data_loader import CropDataset
from utils.volumes.geometry import CropRule

#: Entries of a training's checkpoint that a release file keeps.
KEPT = ("crop_rule", "trained_on", "teacher", "step")
#: Flags of a training that say nothing about its result.
UNTOLD = {"resume", "device", "workers", "save_minutes"}
CLICKS = 3  # of the comparison of masks

logger = logging.getLogger(__name__)


class Release(NamedTuple):
    """What `run` returns."""

    path: Path
    size: int  # bytes
    sha256: str
    agreement: dict[str, float] | None  # of `mask_agreement`; None: no masks were compared


def in_half(model: Sam3D, path: Path) -> dict[str, Tensor]:
    """Return the weights of a network in half precision, biases and norms in float32.

    Args:
        path: its file, for the message.

    Raises:
        InputError: a weight is too large for half precision.
    """
    halves = {}
    for key, tensor in model.state_dict().items():
        is_rounded = tensor.is_floating_point() and tensor.dim() > 1
        halves[key] = tensor.half() if is_rounded else tensor
        if not bool(torch.isfinite(halves[key]).all()):
            raise InputError(
                f"{path}: {key} holds {tensor.abs().max():.3g}, expected weights of at most 65504, "
                "the largest number of half precision.\nTrain with a higher --weight-decay."
            )
    return halves


@torch.inference_mode()
def mask_agreement(
    model: Sam3D, half: Sam3D, index: CropIndex, rule: CropRule, count: int
) -> dict[str, float]:
    """Return how well the masks of two networks agree after the same clicks, as DSC.

    Clicks follow the errors of the first network, by the challenge's rule.

    Args:
        model: the network in float32.
        half: the same network with rounded weights.
        index: targets of a crop cache; ``count`` of them, evenly spaced, are taken.

    Returns:
        The numbers of crops and clicks; mean and least DSC between the masks of the two networks;
        and the mean DSC of each with the truth.
    """
    model, half = model.eval(), half.eval()
    dataset = CropDataset(index, rule)
    places = evenly_spaced(range(len(index.samples)), count)
    between, with_truth = [], []
    for place in places:
        crop = dataset[place]
        truth = crop["label"][0].numpy()
        loops = [Interaction(net, net.image_encoder(crop["image"][None])) for net in (model, half)]
        masks = [np.zeros_like(truth)] * 2
        for _ in range(CLICKS):
            click = challenge_click(masks[0], truth)
            if click is not None:
                point = torch.tensor([click.zyx], dtype=torch.float32)
                label = torch.tensor([int(click.is_foreground)])
                for loop in loops:
                    loop.click(point, label)
                grids = [upsample(loop.low_res_masks, truth.shape[0])[0, 0] for loop in loops]
                masks = [(grid > model.mask_threshold).numpy() for grid in grids]
            # Two empty masks are the same mask.
            between.append(float(dsc(*masks)) if masks[0].any() or masks[1].any() else 1.0)
            with_truth.append([float(dsc(truth, mask)) for mask in masks])
    of_float, of_half = np.mean(with_truth, axis=0).tolist()
    return {
        "crops": float(len(places)),
        "clicks": float(CLICKS),
        "dsc_mean": float(np.mean(between)),
        "dsc_least": min(between),
        "dsc_with_truth_float32": of_float,
        "dsc_with_truth_float16": of_half,
    }


def told_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of a training that may be published: of paths only the files' names.

    Addresses of the hub stay whole. Lists of folders are left out; the names of the data sets are
    in the checkpoint.

    >>> told_flags({"lr": 0.001, "out_dir": "/home/me/run", "checkpoint": "/home/me/teacher.pt"})
    {'lr': 0.001, 'checkpoint': 'teacher.pt'}
    """
    told = {}
    for name, value in flags.items():
        if name in UNTOLD or name.endswith(("_dir", "_datas")):
            continue
        is_path = isinstance(value, str) and not is_address(value)
        told[name] = os.path.basename(value) if is_path else value
    return told


def recipes(args: argparse.Namespace, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the flags of the trainings behind a checkpoint, as they may be published.

    Without ``--recipe`` these are the flags beside the checkpoint, else those in it. If there are
    none, a warning is logged.

    Raises:
        InputError: a file of ``--recipe`` cannot be read.
    """
    beside = args.checkpoint.with_name(FLAGS)
    files = args.recipe or ([beside] if beside.is_file() else [])
    found = [told_flags(read_json(file, "the flags of a run", dict[str, Any])) for file in files]
    if not found and isinstance(content.get(RUN), Mapping):
        return [dict(content[RUN])]
    if not found:
        logger.warning(
            "%s: holds no flags of its training, and no %s lies beside it. The release file will "
            "not say how the network was made: give --recipe.", args.checkpoint, FLAGS,
        )  # fmt: skip
    return found


def commit() -> str | None:
    """Return the commit of this code, with "-dirty" if files were changed; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="a file of a training of this project")
    add("--out", type=Path, required=True, help="file to write, such as weights/student.pth")
    add(
        "--recipe",
        type=Path,
        nargs="+",
        default=[],
        help="args.json of the trainings, in their order (default: the one beside --checkpoint)",
    )
    add(
        "--compare",
        type=Path,
        help="crop cache on which the masks are compared with those of float32; the agreement is "
        "printed and goes into the file (default: not compared)",
    )
    add(
        "--crops",
        type=positive_int,
        default=48,
        help="crops to compare on (default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace --out and its SHA-256")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Release:
    """Write the release file that ``args`` describe, and its SHA-256.

    Raises:
        InputError: the checkpoint is not of this project or has weights that half precision cannot
            hold; another file cannot be read; or ``--out`` is there already.
        WriteError: the folder cannot be written to.
    """
    sidecar = args.out.with_name(args.out.name + HASH_SUFFIX)
    _require_free(args, sidecar)
    with checkpoint_errors():
        content = read_checkpoint(args.checkpoint)
    if not isinstance(content.get("config"), Mapping):
        raise InputError(
            f"{args.checkpoint}: holds no configuration, expected a file that preparelabel.py or "
            "distillation.py wrote.\nRelease files of others are kept as they are."
        )
    model, rule = open_network(args.checkpoint)
    halves = in_half(model, args.checkpoint)
    rounded = copy.deepcopy(model)
    rounded.load_state_dict(halves)
    agreement = None
    if args.compare:
        agreement = mask_agreement(model, rounded, read_index(args.compare), rule, args.crops)
    facts = {key: content[key] for key in KEPT if key in content}
    facts["release"] = {
        "precision": "float16",
        "fingerprint": fingerprint(rounded),
        "fingerprint_float32": fingerprint(model),
        "recipes": recipes(args, content),
        "commit": commit(),
        "torch": str(torch.__version__),
        "mask_agreement": agreement,
    }
    sidecar.unlink(missing_ok=True)  # first, so that no file lies beside the SHA-256 of another
    save_payload(args.out, checkpoint_payload(model, **facts) | {"model_state_dict": halves})
    digest = sha256_of(args.out)
    with atomic_path(sidecar) as temporary:
        temporary.write_text(f"{digest}  {args.out.name}\n")
    return Release(args.out, args.out.stat().st_size, digest, agreement)


def _require_free(args: argparse.Namespace, sidecar: Path) -> None:
    """Refuse to replace a file that the command reads, or any file without ``--overwrite``."""
    read = [args.checkpoint, *args.recipe]
    require_distinct_files([args.out, sidecar], read)
    there = [path for path in (args.out, sidecar) if os.path.lexists(path)]
    if there and not args.overwrite:
        raise InputError(
            f"{there[0]}: is there already, expected no such file.\n"
            "Give another --out, or --overwrite to replace the release file and its SHA-256."
        )


@exit_on_input_error
def main() -> None:
    made = run(parse_args())
    print(f"{made.path}: {made.size:,} bytes, SHA-256 {made.sha256}")
    if made.agreement:
        print(
            "masks of half precision against float32, {crops:.0f} crops, {clicks:.0f} clicks: DSC "
            "{dsc_mean:.5f}, least {dsc_least:.5f}; with the truth {dsc_with_truth_float16:.4f} "
            "and {dsc_with_truth_float32:.4f}".format_map(made.agreement)
        )


if __name__ == "__main__":
    main()
