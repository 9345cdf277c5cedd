"""What limits training, the loader or the step? Samples per second of each alone, and of both.

    python benchmarks/loader.py --network tiny --num-clicks 4 --loss-size 64
    python benchmarks/loader.py --network vit_b_ori --batch-size 8 --crops-dir crops

Reads a crop cache of preparelabel.py, which may be copied to a machine without nibabel. The three
measurements take turns; medians are printed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from segment_anything import autocast, network_configs, sam_model_registry3D
from utils.errors import exit_on_input_error
from utils.run.device import pick_device, pick_precision
from utils.run.flags import add_run_arguments, non_negative_int, positive_int
from utils.training.crop_cache import read_index
from utils.training.data_loader import (
    BalancedBatches,
    CropDataset,
    add_crop_arguments,
    augmentation,
    make_loader,
)
from utils.training.tasks import InteractiveTask
from utils.volumes.geometry import CropRule


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--crops-dir",
        type=Path,
        default=Path("work_dir/crops"),
        help="crop cache (default: %(default)s)",
    )
    what.add_argument(
        "--network",
        choices=sorted(network_configs),
        default="vit_b_ori",
        help="(default: vit_b_ori)",
    )
    what.add_argument("--batch-size", type=positive_int, default=4, help="(default: 4)")
    what.add_argument("--num-clicks", type=positive_int, default=11, help="(default: 11)")
    what.add_argument("--loss-size", type=positive_int, default=128, help="(default: 128)")
    what.add_argument(
        "--workers",
        type=non_negative_int,
        default=2,
        help="processes that load batches; 0 = none (default: 2)",
    )
    add_crop_arguments(what)
    what.add_argument(
        "--batches", type=positive_int, default=8, help="batches in a round (default: 8)"
    )
    what.add_argument("--rounds", type=positive_int, default=3, help="(default: 3)")
    add_run_arguments(parser)
    return parser.parse_args()


class Training:
    """A loader and a training step, to be timed alone and together."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self._device = args, pick_device(args.device)
        self._precision = pick_precision(args.precision, self._device)
        self._index = read_index(args.crops_dir)
        torch.manual_seed(args.seed)
        model = sam_model_registry3D[args.network]().to(self._device).train()
        self._task = InteractiveTask(
            model,
            num_clicks=args.num_clicks,
            loss_size=args.loss_size,
            seed=args.seed,
            box_share=0.25,
            free_turns=min(2, args.num_clicks // 4),
        )
        self._optimizer = torch.optim.AdamW(self._task.parameter_groups(1e-5))
        self._rule = CropRule(size=model.config.encoder.img_size)
        self._batches = self._loaded()

    def _loaded(self) -> Iterator[dict]:
        args = self._args
        batches = BalancedBatches(self._index.samples, args.batch_size, 10**6, args.seed)
        dataset = CropDataset(self._index, self._rule, **augmentation(args))
        return iter(make_loader(dataset, batches, args.workers))

    def load(self) -> dict:
        """Return the next batch."""
        return next(self._batches)

    def step(self, batch: dict) -> None:
        """Take one training step on a batch."""
        batch = batch | {key: batch[key].to(self._device) for key in ("image", "label")}
        with autocast(self._device, self._precision):
            loss = self._task(batch)["loss"]
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        float(loss)  # waits for the device

    def drain(self) -> None:
        """Discard batches that workers have loaded ahead; a timed round loads all of its own."""
        for _ in range(2 * self._args.workers):
            self.load()


def samples_per_second(work: Callable[[], object], batches: int, batch_size: int) -> float:
    """Time ``batches`` calls of ``work``; return the samples per second."""
    started = time.perf_counter()
    for _ in range(batches):
        work()
    return batches * batch_size / (time.perf_counter() - started)


@exit_on_input_error
def main() -> None:
    args = parse_args()
    training = Training(args)
    batch = training.load()
    training.step(batch)  # the first step also allocates memory and selects kernels
    works = {
        "loader alone": training.load,
        "step alone": lambda: training.step(batch),
        "both": lambda: training.step(training.load()),
    }
    speeds = {name: [] for name in works}
    for _ in tqdm(range(args.rounds), unit="round"):
        for name, work in works.items():
            training.drain()
            speeds[name].append(samples_per_second(work, args.batches, args.batch_size))
    for name, values in speeds.items():
        spread = f"{min(values):.1f} ... {max(values):.1f}"
        print(f"{name:14}{statistics.median(values):8.1f} samples/s   ({spread})")
    loader, step = (statistics.median(speeds[name]) for name in ("loader alone", "step alone"))
    slower = "loader" if loader < step else "step"
    print(f"the {slower} is the limit: {max(loader, step) / min(loader, step):.1f} x slower")


if __name__ == "__main__":
    main()
