"""All six steps with the small network, on phantoms or on your own cases: `make demo`.

Reads   --data   a folder of challenge NPZ with imgs, gts and spacing (default: phantoms it makes)
Writes  --out    everything: prepared trees, crops, both networks, tables and pictures

    python demo.py
    python demo.py --data my_npz --json my_classes.json --steps 2000

Your files are only read. Every fifth case, in order of name, is kept for validation.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from utils.errors import InputError, exit_on_input_error
from utils.phantoms import write_phantoms
from utils.pictures import draw_click_curve

ROOT = Path(__file__).resolve().parent
TRAIN_PHANTOMS, VAL_PHANTOMS = 24, 6


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of challenge NPZ (default: phantoms)")
    parser.add_argument("--json", type=Path, default=ROOT / "CVPR25.json", help="class file")
    parser.add_argument("--out", type=Path, default=Path("work_dir/demo"))
    parser.add_argument(
        "--steps", type=int, default=150, help="training steps of the teacher (default: 150)"
    )
    return parser.parse_args(argv)


def gather_cases(args: argparse.Namespace) -> dict[str, Path]:
    """Return the folders of training and validation NPZ, made of phantoms or links to --data."""
    folders = {split: args.out / "npz" / split for split in ("train", "val")}
    if args.data is None:
        write_phantoms(folders["train"], TRAIN_PHANTOMS, seed=0)
        write_phantoms(folders["val"], VAL_PHANTOMS, seed=1, first_number=TRAIN_PHANTOMS + 1)
        return folders
    files = sorted(args.data.glob("*.npz"))
    if len(files) < 2:
        raise InputError(
            f"{args.data}: found {len(files)} NPZ files, expected at least 2 with imgs, gts and "
            "spacing, of which one is kept for validation.\nGive another folder with --data."
        )
    for number, file in enumerate(files):
        folder = folders["val" if number % 5 == 1 else "train"]
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / file.name
        if not link.exists():
            link.symlink_to(file.resolve())
    return folders


def run_step(title: str, script: str, *arguments: object) -> None:
    """Run one script of the pipeline as a user would, showing the command."""
    words = [str(argument) for argument in arguments]
    print(f"\n== {title}\n$ python {shlex.join([script, *words])}", flush=True)
    done = subprocess.run([sys.executable, ROOT / script, *words], check=False)
    if done.returncode:
        raise InputError(
            f"{script} ended with exit code {done.returncode}; what it said is above.\n"
            "Mend that and run the demo again: finished parts are kept."
        )


def prepare(npz: Path, tree: Path, out: Path, class_file: Path) -> list[Path]:
    """Steps 1a to 1c for one folder of NPZ; return the prepared <organ>/<data set> folders."""
    classified = out / "classified" / npz.name
    run_step(
        "1a classify", "classify.py", "--labels", npz, "--json", class_file, "--out", classified
    )
    run_step(
        "1b categorize", "categorize.py", "--in", classified, "--json", class_file, "--out", tree
    )
    run_step("1c reallocate", "reallocate.py", "--images", npz, "--tree", tree)
    return sorted(path for path in tree.glob("*/*") if path.is_dir())


def run(args: argparse.Namespace) -> dict[str, dict]:
    """Run the six steps; return the summaries of teacher and student."""
    out = args.out
    npz = gather_cases(args)
    train = prepare(npz["train"], out / "medical_preprocessed", out, args.json)
    val = prepare(npz["val"], out / "medical_validation", out, args.json)
    shared = ["--batch-size", 4, "--workers", 1, "--crops-dir", out / "crops"]
    run_step(
        "3 train the teacher, store its outputs",
        *["preparelabel.py", "--network", "tiny", "--fit-spacing", "--img-datas", *train],
        *["--steps", args.steps, "--num-clicks", 4, "--loss-size", 32, "--decoder-lr-scale", 1],
        *["--out-dir", out / "teacher", "--teacher-dir", out / "teacher_outputs", *shared],
    )
    run_step(
        "4 distil the student",
        *["distillation.py", "--network", "tiny_fastsam3d", "--steps", args.steps],
        *["--teacher-dir", out / "teacher_outputs", "--out-dir", out / "student", *shared],
    )
    run_step(
        "5 validate the teacher",
        *["validation.py", "--checkpoint", out / "teacher_outputs" / "teacher.pt"],
        *["--val-datas", *val, "--out-dir", out / "validation_teacher"],
    )
    run_step(
        "6 validate the student",
        *["validation_student.py", "--checkpoint", out / "student" / "student.pth"],
        *["--val-datas", *val, "--out-dir", out / "validation_student"],
    )
    return {
        name: json.loads((out / f"validation_{name}" / "summary.json").read_text())
        for name in ("teacher", "student")
    }


def table(summaries: dict[str, dict]) -> str:
    """Return the demo's one table."""
    clicks = len(summaries["teacher"]["dsc"])
    lines = [
        f"{'':8}"
        + "".join(f"  DSC@{k + 1}" for k in range(clicks))
        + "  DSC_AUC  ms/volume  parameters"
    ]
    for name, s in summaries.items():
        lines.append(
            f"{name:8}"
            + "".join(f"{v:7.3f}" for v in s["dsc"])
            + f"{s['dsc_auc']:9.3f}{s['encoder_ms'] + s['decoder_ms']:11.1f}"
            + f"{s['parameters'] / 1e6:10.2f} M"
        )
    ball = summaries["teacher"]
    lines.append(
        f"ball of {ball['ball_radius_mm']:.0f} mm at the first click, "
        f"the best radius: DSC {ball['ball_dsc']:.3f}"
    )
    return "\n".join(lines)


@exit_on_input_error
def main() -> None:
    started = time.monotonic()
    args = parse_args()
    summaries = run(args)
    curve = args.out / "dsc.png"
    ball = ("ball at click 1", summaries["teacher"]["ball_dsc"])
    curves = {name: summary["dsc"] for name, summary in summaries.items()}
    draw_click_curve(curve, curves, ylabel="DSC", baseline=ball)
    print(f"\n{table(summaries)}")
    print(f"curves    {curve}")
    for name, summary in summaries.items():
        print(f"{name:9} {Path(summary['out_dir']) / 'pictures'}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
