"""Time and memory of training steps, with our windowed attention and with the literal form.

    python benchmarks/training.py
    python benchmarks/training.py --batch-size 8 --crops-dir crops --json work_dir/training.json
    python benchmarks/training.py --set encoder.depth=3 --steps teacher      # where memory is short

Three kinds of step are timed, each in both forms, in turns in one process:

* encoder: the teacher's image encoder alone, forward and backward;
* teacher: preparelabel.py's step: encode once, click and decode ``--num-clicks`` times, backward,
  clip, AdamW;
* distillation: distillation.py's step with --online, in the stage "masks": ``--distil-clicks``
  clicks into the teacher's errors, decoded by teacher and student. Only the teacher has a literal
  form, since the student has no windows.

The literal form pads the token grid to the window, attends among all padded tokens with a bias of
full size, and crops; nothing else differs. The learning rate is 0: the optimizer does all its work,
but every step of both forms has the same weights. Clicks follow from seed and masks. Loss and
gradient norm are compared in every timed step. Memory is the peak of a step, gradients included,
beyond weights and the optimizer's state; see `PeakMemory`.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.literal_attention import literal_windows
from benchmarks.measure import (
    PeakMemory,
    alternate,
    json_file,
    machine,
    machine_line,
    summary,
    synchroniser,
    table,
    write_json,
)
from segment_anything import Sam3D, SamConfig, autocast, build_sam3D, network_configs
from utils.errors import InputError, exit_on_input_error
from utils.run.device import pick_device, pick_precision
from utils.run.flags import add_run_arguments, positive_int
from utils.run.network_flags import changed
from utils.training.crop_cache import read_index
from utils.training.data_loader import CropDataset, collate
from utils.training.distillation import DistillationPlan, OnlineDistillation, copy_teacher_blocks
from utils.training.tasks import InteractiveTask, Task
from utils.volumes.geometry import CropRule

FORMS = {"ours": nullcontext, "literal": literal_windows}
CLIP = 1.0


class Outcome(NamedTuple):
    """The numbers of a step that are compared between both forms."""

    loss: float
    gradient_norm: float


class Step(NamedTuple):
    """A kind of step: the loss of a batch, and the optimizer's parameter groups."""

    loss: Callable[[dict], Tensor]
    groups: list[dict]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--network",
        choices=sorted(network_configs),
        default="vit_b_ori",
        help="(default: vit_b_ori)",
    )
    what.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="PART.FIELD=VALUE",
        help="change fields of the network (default: none)",
    )
    what.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(STEPS), help="(default: all)"
    )
    what.add_argument("--batch-size", type=positive_int, default=1, help="(default: 1)")
    what.add_argument("--num-clicks", type=positive_int, default=11, help="(default: 11)")
    what.add_argument("--distil-clicks", type=positive_int, default=5, help="(default: 5)")
    what.add_argument("--loss-size", type=positive_int, default=128, help="(default: 128)")
    what.add_argument(
        "--crops-dir", type=Path, help="crop cache of preparelabel.py (default: made-up crops)"
    )
    what.add_argument(
        "--runs", type=positive_int, default=5, help="timed steps of each form (default: 5)"
    )
    what.add_argument(
        "--json", type=json_file, help="also write the numbers to a file (default: none)"
    )
    add_run_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Time every kind of step in both forms; return a row for each, with machine and settings."""
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    config = changed(network_configs[args.network], args.set)
    windows = _windows(config)
    if not windows:
        raise InputError(
            f"--network {config.network}: no block pads its grid to a window, so that both forms "
            "are the same; expected a network with windows. Give --network vit_b_ori."
        )
    batch = _on_device(_batch(args, config), device)
    rows = []
    for name in args.steps:
        torch.manual_seed(args.seed)
        step = STEPS[name](_teacher(config).to(device), args)
        rows += _rows(name, Trainer(step, batch, device, precision), args)
        del step
        _forget(device)
    report = {
        "machine": machine(),
        "network": {"name": config.network, "set": args.set, "padded_blocks": windows},
        "batch_size": args.batch_size,
        "num_clicks": args.num_clicks,
        "distil_clicks": args.distil_clicks,
        "loss_size": args.loss_size,
        "precision": str(precision).removeprefix("torch."),
        "crops": str(args.crops_dir or "made up"),
        "rows": rows,
    }
    if args.json:
        write_json(args.json, report)
    return report


def _windows(config: SamConfig) -> int:
    """Count the blocks whose attention pads the token grid to a window."""
    encoder = config.encoder
    others = {*encoder.global_attn_indexes, *encoder.attention_free_blocks} & {
        *range(encoder.depth)
    }
    return (encoder.depth - len(others)) * (encoder.window_size > encoder.grid_size)


def _teacher(config: SamConfig) -> Sam3D:
    """Build a network with random weights, those of relative position included."""
    model = build_sam3D(config)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:  # zero in a fresh network
            nn.init.normal_(parameter, std=0.2)
    return model.train()


def student_config(teacher: SamConfig) -> SamConfig:
    """Return a student of half the teacher's depth, in the manner of fastsam3d and vit_b_ori."""
    depth = max(1, teacher.encoder.depth // 2)
    encoder = replace(
        teacher.encoder,
        depth=depth,
        window_size=0,
        global_attn_indexes=(),
        attention_free_blocks=tuple(range(depth // 3)),
        mlp_residual="normalised",
    )
    return replace(teacher, network="fastsam3d", encoder=encoder)


def _encoder_step(model: Sam3D, args: argparse.Namespace) -> Step:
    """Return the encoder's step: the loss is the embedding's product with a fixed tensor."""
    encoder, direction = model.image_encoder, []

    def loss(batch: dict) -> Tensor:
        embedding = encoder(batch["image"]).float()
        if not direction:
            direction.append(torch.randn_like(embedding))
        return (embedding * direction[0]).sum() / embedding.numel() ** 0.5

    return Step(loss, [{"params": list(encoder.parameters())}])


def _teacher_step(model: Sam3D, args: argparse.Namespace) -> Step:
    """Return the step of preparelabel.py, with its default box share and turns without clicks."""
    task = InteractiveTask(
        model,
        num_clicks=args.num_clicks,
        loss_size=min(args.loss_size, model.config.encoder.img_size),
        seed=args.seed,
        box_share=0.25,
        free_turns=min(2, args.num_clicks // 4),
    )
    return _of_task(task)


def _distillation_step(model: Sam3D, args: argparse.Namespace) -> Step:
    """Return the step of distillation.py --online in the stage "masks"."""
    student = build_sam3D(student_config(model.config)).train()
    student.prompt_encoder.load_state_dict(model.prompt_encoder.state_dict())
    student.mask_decoder.load_state_dict(model.mask_decoder.state_dict())
    copy_teacher_blocks(model, student)
    student.to(next(model.parameters()).device)
    plan = DistillationPlan(steps=1)
    online = {"num_clicks": args.distil_clicks, "seed": args.seed}
    return _of_task(OnlineDistillation(student, plan, model, **online))


def _of_task(task: Task) -> Step:
    return Step(lambda batch: task(batch)["loss"], task.parameter_groups(lr=0.0))


STEPS: dict[str, Callable[[Sam3D, argparse.Namespace], Step]] = {
    "encoder": _encoder_step,
    "teacher": _teacher_step,
    "distillation": _distillation_step,
}


class Trainer:
    """Repeats one step in either form, with the same operations as utils/training/trainer.py."""

    def __init__(
        self, step: Step, batch: dict, device: torch.device, precision: torch.dtype
    ) -> None:
        self.device, self._precision = device, precision
        self._step, self._batch = step, batch
        self._optimizer = torch.optim.AdamW(step.groups, lr=0.0, betas=(0.9, 0.95))
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=2.0**10, enabled=precision == torch.float16
        )

    def take(self, form: str) -> Outcome:
        """Take a step: forward, backward, clip, AdamW."""
        try:
            with FORMS[form](), autocast(self.device, self._precision):
                loss = self._step.loss(self._batch)
            self._scaler.scale(loss).backward()
            self._scaler.unscale_(self._optimizer)
            trained = [p for group in self._step.groups for p in group["params"]]
            norm = float(nn.utils.clip_grad_norm_(trained, CLIP))
            self._scaler.step(self._optimizer)
            self._scaler.update()
            return Outcome(float(loss.detach()), norm)
        finally:
            self._optimizer.zero_grad(set_to_none=True)


def _rows(name: str, trainer: Trainer, args: argparse.Namespace) -> list[dict]:
    """Time one kind of step in both forms; a form that does not fit in memory has no time."""
    trainer.take("ours")  # allocates the optimizer's state
    outcomes: dict[str, list[Outcome]] = {form: [] for form in FORMS}
    memory, fits = {}, []
    for form in FORMS:
        with PeakMemory(trainer.device) as memory[form]:
            if _fits(lambda form=form: trainer.take(form), trainer.device):
                fits.append(form)
    works = {form: lambda form=form: outcomes[form].append(trainer.take(form)) for form in fits}
    seconds = alternate(works, args.runs, warmup=1, synchronise=synchroniser(trainer.device))
    rows = []
    for form in FORMS:
        row = {"step": name, "form": form, "fits": form in fits}
        if form in fits:
            row |= {
                "samples_per_s": args.batch_size / summary(seconds[form])["median"],
                **{"seconds": seconds[form], "summary": summary(seconds[form])},
                "memory_growth_bytes": memory[form].growth,
                **outcomes[form][-1]._asdict(),
                "differences": _differences(outcomes[form], outcomes["ours"]),
            }
            row["times_ours"] = row["summary"]["median"] / summary(seconds["ours"])["median"]
        rows.append(row)
    return rows


def _fits(work: Callable[[], object], device: torch.device) -> bool:
    """Call ``work``; return whether it fits in memory."""
    try:
        work()
    except RuntimeError as error:
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        fits = False
    else:
        fits = True
    _forget(device)
    return fits


def _forget(device: torch.device) -> None:
    """Free unused memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _differences(found: Sequence[Outcome], expected: Sequence[Outcome]) -> dict[str, float]:
    """Return the largest relative difference of each number over all pairs of steps."""
    return {
        field: max(
            abs(getattr(a, field) / getattr(b, field) - 1)
            for a, b in zip(found, expected, strict=True)
        )
        for field in Outcome._fields
    }


def _batch(args: argparse.Namespace, config: SamConfig) -> dict:
    """Return the first crops of the cache, or made-up ones."""
    size = config.encoder.img_size
    if args.crops_dir is None:
        return made_up_batch(size, args.batch_size, args.seed)
    index = read_index(args.crops_dir)
    dataset = CropDataset(index, CropRule(size=size))
    return collate([dataset[number % len(dataset)] for number in range(args.batch_size)])


def made_up_batch(size: int, batch_size: int, seed: int) -> dict:
    """Return a batch as of `CropDataset`: bright ellipsoids in a background of waves and noise."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    zyx = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    images, labels = [], []
    for _ in range(batch_size):
        waves = sum((zyx @ uniform(-9, 9, 3) + uniform(0, 6, 1)).sin() for _ in range(6))
        radii = uniform(0.2, 0.5, 3)
        label = (((zyx - uniform(-0.3, 0.3, 3)) / radii) ** 2).sum(-1) <= 1
        image = waves + 2 * label + 0.5 * torch.randn(label.shape, generator=generator)
        images.append((image - image.mean()) / image.std())
        labels.append(label)
    return {
        "image": torch.stack(images)[:, None],
        "label": torch.stack(labels)[:, None],
        "number": list(range(batch_size)),
    }


def _on_device(batch: dict, device: torch.device) -> dict:
    return batch | {key: batch[key].to(device) for key in ("image", "label")}


def report_table(report: dict) -> str:
    """Return the rows as Markdown."""
    headers = ["step", "attention", "samples/s", "s a step (p10 … p90)", "times ours"]
    headers += ["memory, GiB", "loss", "differs by", "gradient norm", "differs by"]
    rows = []
    for row in report["rows"]:
        form = row["form"]
        if row["step"] == "distillation" and form == "literal":
            form = "literal in the teacher"
        cells = [row["step"], form]
        if row["fits"]:
            spread, differences = row["summary"], row["differences"]
            median, p10, p90 = (f"{spread[key]:.3f}" for key in ("median", "p10", "p90"))
            cells += [f"{row['samples_per_s']:.3f}", f"{median} ({p10} … {p90})"]
            cells += [f"{row['times_ours']:.2f}", f"{row['memory_growth_bytes'] / 2**30:.2f}"]
            for key in Outcome._fields:
                cells += [f"{row[key]:.6g}", f"{differences[key]:.1e}"]
        else:
            cells += ["out of memory", *["-"] * (len(headers) - 3)]
        rows.append(cells)
    return table(headers, rows)


@exit_on_input_error
def main() -> None:
    report = run(parse_args())
    network = report["network"]
    named = " ".join([network["name"], *network["set"]])
    print(
        f"{named}, {network['padded_blocks']} padded blocks, batch {report['batch_size']}, "
        f"{report['num_clicks']} clicks ({report['distil_clicks']} in distillation), "
        f"{report['precision']}, crops: {report['crops']}\n{machine_line()}\n"
    )
    print(report_table(report))


if __name__ == "__main__":
    main()
