"""What defines a run: --resume continues a run only with the flags and crops it was started with.

A resumed run equals an uninterrupted one, so everything that changes its numbers is saved in
``last.pt`` and compared. Free to change are --workers, --device, --save-minutes and the names of
folders. Another number of --steps is allowed with --lr-schedule constant, if no step done so far
would have had another rate (in the warm-up) or another stage. The schedules "steps" and "cosine"
need the same number, since their rates are spread over all steps. --minutes stays the same.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from utils.errors import InputError
from utils.files.strict_json import parse_json
from utils.run.ranks import world_size
from utils.training.config import FitConfig, lr_factor
from utils.training.tasks import Task

#: Where a fact of a checkpoint comes from, for messages.
SOURCES = {
    "crop_rule": "--spacing-mm, --fit-spacing",
    "teacher": "--teacher-dir",
    "trained_on": "--img-datas, --val-share",
}
CROPS = "crops (--img-datas, --crops-dir, --max-instances, --min-instance-voxels, --val-share)"
VALIDATION_CROPS = "crops of the validation (--val-datas, --val-share, --val-crops)"
SHOWN = 60  # characters of a value in a message


def definition(
    config: FitConfig, samples: Sequence[Mapping], more: Mapping[str, object]
) -> dict[str, object]:
    """Return what defines a run: plain values by the names of their flags.

    Args:
        samples: the crops to train on, in their order, which decides what is drawn.
        more: further values, of the task, the crops and the validation.
    """
    names = ("steps", "minutes", "optimizer", "lr", "lr_schedule", "warmup", "weight_decay", "clip")
    names += ("validate_every", "patience", "seed")
    flags = {flag_of(name): getattr(config, name) for name in names}
    return {
        **flags,
        "--precision": str(config.precision).removeprefix("torch."),
        "--batch-size x --accumulation x ranks": (
            config.batch_size * config.accumulation * world_size()
        ),
        CROPS: digest_of(samples),
        **more,
    }


def followed_steps(args: argparse.Namespace) -> dict[str, int | None]:
    """Return --steps where turns or sources of targets change over the run, else None."""
    changing = ("start_clicks", "region_share", "generated_share")
    changes = any(getattr(args, name, 0) for name in changing)
    return {"--steps that turns and targets follow": args.steps if changes else None}


def flag_of(name: str) -> str:
    """Return a flag: ``--num-clicks`` for ``num_clicks``."""
    return f"--{name.replace('_', '-')}"


def digest_of(samples: Sequence[Mapping]) -> str:
    """Return a digest of crops in their order: ids, groups, images and masks."""
    keys = ("sample_id", "organ", "dataset", "image", "mask")
    digest = hashlib.blake2b(digest_size=8)
    for sample in samples:
        digest.update(json.dumps([sample.get(key) for key in keys]).encode())
    return f"{len(samples)} targets, digest {digest.hexdigest()}"


def stages_done(task: Task, taken: int, steps: int | None) -> list[list]:
    """Return the stages of the ``taken`` steps of a run: a list of [stage, number of steps].

    The list is empty where ``steps`` is None: in a run with --minutes steps have no fixed stages.
    """
    if steps is None:
        return []
    stages = groupby(range(taken), lambda step: task.stage(step / steps))
    return [[parse_json(json.dumps(stage)), len(list(group))] for stage, group in stages]


def require_same_facts(path: Path, found: Mapping, expected: Mapping) -> None:
    """Raise an `InputError` if facts of a checkpoint are not those of this run."""
    for key, value in expected.items():
        if found.get(key) != value:
            source = f" ({SOURCES[key]})" if key in SOURCES else ""
            raise InputError(
                f"{path}: its {key} is {found.get(key)}, expected {value}{source}.\n"
                "Give --resume with the flags and files of the stopped run, or another --out-dir."
            )


def require_same_run(path: Path, stored: object, now: Mapping, step: int) -> None:
    """Raise an `InputError` that names all flags that are not those of the stopped run.

    Args:
        path: the checkpoint, for the message.
        stored: its `definition`, with ``stages``.
        now: of this run; its ``stages`` are of the first ``step`` steps.
        step: steps done.
    """
    if not isinstance(stored, Mapping):
        raise InputError(
            f"{path}: holds {str(stored)[:SHOWN]} as the flags of its run, expected a table. The "
            "file is damaged: train anew in another --out-dir."
        )
    lines = [*_differences(stored, now, step)]
    if lines:
        raise InputError(
            "\n".join(
                [
                    f"{path}: --resume was given with other flags than the stopped run's.",
                    *(f"  {line}" for line in lines),
                    "Give --resume with the flags and files of the stopped run, or another "
                    "--out-dir. Only --workers, --device and --save-minutes may differ.",
                ]
            )
        )


def _differences(stored: Mapping, now: Mapping, step: int) -> Iterator[str]:
    for name in [*now, *(key for key in stored if key not in now)]:
        old, new = stored.get(name), now.get(name)
        if old != new and name not in ("--steps", "stages"):
            yield f"{name}: found {str(new)[:SHOWN]}, expected {str(old)[:SHOWN]}"
    if stored.get("--steps") == now["--steps"]:
        return
    constant = now.get("--lr-schedule") == "constant"
    same_rates = constant and _rates(stored, step) == _rates(now, step)
    if not same_rates or stored.get("stages") != now["stages"]:
        kind = "stages" if same_rates else "learning rates"
        yield (
            f"--steps: found {now['--steps']}, expected {str(stored.get('--steps'))[:SHOWN]}, "
            f"since {kind} follow from the number of steps"
        )


def _rates(run: Mapping, step: int) -> list[float] | None:
    """Return the learning rates of the first steps, as shares; None where they are not known."""
    try:
        values = run["--steps"], run["--warmup"], run["--lr-schedule"]
        return [lr_factor(number / values[0], *values) for number in range(step)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
