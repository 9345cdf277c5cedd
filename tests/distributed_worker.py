"""A training of the small network and a storing of its outputs, for torchrun to start.

python tests/distributed_worker.py CROPS OUT --batch-size B [--die-at STEP]
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from small_networks import RULE, small_sam, small_student
from test_trainer import CONFIG

from segment_anything import checkpoint_payload, student_payload
from utils.errors import InputError, exit_on_input_error
from utils.run.ranks import joined, rank
from utils.training.crop_cache import read_index
from utils.training.data_loader import CropDataset
from utils.training.distillation import DistillationPlan, EncoderDistillation
from utils.training.store_writer import StoreConfig, store_outputs
from utils.training.tasks import InteractiveTask
from utils.training.teacher_store import TeacherOutputs, open_store
from utils.training.trainer import fit


class Dying(InteractiveTask):
    """Meets a bad sample on rank 1 at the second step."""

    def forward(self, batch):
        if rank() == 1 and max(batch["number"]) >= 4:
            raise InputError(f"{batch['id'][0]}: cannot be read. Expected a crop: cut it again.")
        return super().forward(batch)


@exit_on_input_error
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("crops", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--save-minutes", type=float, default=60)
    parser.add_argument("--die", action="store_true")
    parser.add_argument("--minutes", type=float, help="with a clock of rank 1 that goes faster")
    args = parser.parse_args()
    torch.set_num_threads(1)
    (args.out / "student").mkdir(parents=True, exist_ok=True)
    index = read_index(args.crops)
    model = small_sam()
    task = (Dying if args.die else InteractiveTask)(
        model, num_clicks=2, loss_size=16, seed=0, decoder_lr_scale=1.0
    )
    keys = ("batch_size", "accumulation", "save_minutes")
    config = replace(CONFIG, **{key: vars(args)[key] for key in keys})
    if args.minutes:
        config = replace(config, steps=None, minutes=args.minutes)
    speed = 1 + 50 * rank()
    clock = {"clock": lambda: speed * time.monotonic()}
    with joined("cpu") as device:
        fit(
            task,
            CropDataset(index, RULE, augment="basic"),
            index.samples,
            config,
            args.out,
            device=device,
            payload=lambda: checkpoint_payload(model),
            resume=args.resume,
            **clock,
        )
        store_outputs(
            small_sam(3),  # as it is, so that what is distilled is alike to the last bit
            index,
            args.out / "stored",
            rule=RULE,
            config=StoreConfig(num_clicks=2, layers=(1, 2), precision="float16", seed=0),
            device=device,
            precision=torch.float32,
        )
        store = open_store(args.out / "stored", index, RULE)
        student = small_student()
        plan = DistillationPlan(6, (1, 2), layer_share=0.34, embedding_share=0.17, tune_share=0.17)
        fit(
            EncoderDistillation(student, plan),
            TeacherOutputs(store, index, RULE),
            index.samples,
            config,
            args.out / "student",
            device=device,
            payload=lambda: student_payload(student),
            resume=args.resume,
            **clock,
        )
    torch.save([model.state_dict(), student.state_dict()], args.out / f"rank_{rank()}.pt")
    if os.environ.get("RANK", "0") == "0":
        torch.save(model.state_dict(), args.out / "weights.pt")
        torch.save(student.state_dict(), args.out / "student.pt")


if __name__ == "__main__":
    main()
