"""Run all steps with the small network, on phantoms or on your own cases: `make demo`.

Reads   --data   a folder of challenge NPZ with imgs, gts and spacing; without it, phantoms are made
Writes  --out    prepared trees, crop cache, both networks, tables and pictures

    python demo.py
    python demo.py --data my_npz --json my_classes.json --steps 2000

Your files are only read. Of every five cases in order of name, the second is kept for validation. A
stopped demo resumes where it stopped.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

from utils.cases.phantoms import write_phantoms
from utils.errors import InputError, exit_on_input_error
from utils.files.lock import owned
from utils.files.strict_json import read_json
from utils.results.curves import click_curve_figure
from utils.results.figures import save
from utils.run.flags import positive_int

ROOT = Path(__file__).resolve().parent
TRAIN_PHANTOMS, VAL_PHANTOMS = 24, 6


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of challenge NPZ (default: phantoms)")
    parser.add_argument(
        "--json",
        type=Path,
        default=ROOT / "CVPR25.json",
        help="class file (default: CVPR25.json)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dir/demo"),
        help="output folder; --data adds a suffix to the folder's name (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=positive_int,
        default=120,
        help="training steps of the teacher; the student has half as many (default: 120)",
    )
    return parser.parse_args(argv)


def out_folder(args: argparse.Namespace) -> Path:
    """Return the output folder; each source of cases has its own."""
    if args.data is None:
        return args.out
    source = args.data.resolve()
    return args.out.with_name(f"{args.out.name}_{source.name}_{crc32(bytes(source)):08x}")


def gather_cases(data: Path | None, out: Path) -> dict[str, Path]:
    """Fill the folders of training and validation NPZ with phantoms, or with links to ``data``."""
    folders = {split: out / "npz" / split for split in ("train", "val")}
    if data is None:
        write_phantoms(folders["train"], TRAIN_PHANTOMS, seed=0)
        write_phantoms(folders["val"], VAL_PHANTOMS, seed=1, first_number=TRAIN_PHANTOMS + 1)
        return folders
    files = sorted(path for path in data.glob("*") if path.suffix.lower() == ".npz")
    if len(files) < 2:
        raise InputError(
            f"{data}: found {len(files)} NPZ files, expected at least 2 with imgs, gts and "
            "spacing, of which one is kept for validation.\nGive another folder with --data."
        )
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
        for old_link in filter(Path.is_symlink, folder.glob("*.npz")):
            old_link.unlink()
    for number, file in enumerate(files):
        link = folders["val" if number % 5 == 1 else "train"] / f"{file.stem}.npz"
        link.symlink_to(file.resolve())
    return folders


class Pipeline:
    """Runs the scripts with the commands that a user would type, and prints each command.

    A script exits with 1 if it left out a case; the next script runs nevertheless.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []  # scripts that left out a case

    def step(self, title: str, script: str, *arguments: object) -> None:
        """Run a script.

        Raises:
            InputError: the script exited with a code other than 0 and 1.
        """
        words = [str(argument) for argument in arguments]
        print(f"\n== {title}\n$ python {shlex.join([script, *words])}", flush=True)
        done = subprocess.run([sys.executable, ROOT / script, *words], check=False)
        if done.returncode not in (0, 1):
            raise InputError(
                f"{script} ended with exit code {done.returncode}; expected 0 or 1.\n"
                "Correct the error printed above and run the demo again."
            )
        if done.returncode:
            self.failed.append(script)

    def prepare(self, npz: Path, tree: Path, classified: Path, class_file: Path) -> list[Path]:
        """Run steps 1a to 1c on one folder; return the prepared <organ>/<data set> folders."""
        classes = ["--json", class_file]
        self.step("1a classify", "classify.py", "--labels", npz, "--out", classified, *classes)
        self.step("1b categorize", "categorize.py", "--in", classified, "--out", tree, *classes)
        self.step("1c reallocate", "reallocate.py", "--images", npz, "--tree", tree)
        return sorted(path.parent for path in tree.glob("*/*/labelsTr"))


def train(pipeline: Pipeline, folders: Sequence[Path], out: Path, steps: int) -> None:
    """Run steps 3 and 4: teacher and student, in ``out``."""
    shared = ["--batch-size", 2, "--workers", 1, "--resume"]
    shared += ["--crops-dir", out / "crops", "--teacher-dir", out / "teacher_outputs"]
    pipeline.step(
        "3 train the teacher, store its outputs",
        *["preparelabel.py", "--network", "tiny", "--fit-spacing", "--img-datas", *folders],
        *["--num-clicks", 3, "--start-clicks", 1, "--loss-size", 64, "--decoder-lr-scale", 1],
        *["--region-share", 0.3, "--flip-share", 0, "--stored-clicks", 3],
        *["--optimizer", "muon", "--lr-schedule", "cosine", "--store-layers", 2, 4, 6],
        *["--steps", steps, "--out-dir", out / "teacher", *shared],
    )
    pipeline.step(
        "4 distil the student",
        *["distillation.py", "--network", "tiny_fastsam3d", "--steps", max(1, steps // 2)],
        *["--out-dir", out / "student", *shared],
    )


def validate(pipeline: Pipeline, folders: Sequence[Path], out: Path) -> dict[str, dict]:
    """Run steps 5 and 6 on whole volumes; return the summaries of teacher and student."""
    networks = {
        "teacher": ["validation.py", "--checkpoint", out / "teacher_outputs" / "teacher.pt"],
        "student": ["validation_student.py", "--checkpoint", out / "student" / "student.pth"],
    }
    summaries = {}
    for number, (name, command) in enumerate(networks.items(), start=5):
        summary = out / f"validation_{name}" / "summary.json"
        summary.unlink(missing_ok=True)
        arguments = ["--val-datas", *folders, "--out-dir", summary.parent]
        pipeline.step(f"{number} validate the {name}", *command, *arguments)
        if not summary.exists():
            raise InputError(
                f"{summary}: not found, expected validation scores; {', '.join(pipeline.failed)} "
                "failed, see above.\nCorrect the cause and run the demo again; finished work is "
                "kept."
            )
        summaries[name] = read_json(summary, "the scores of a validation", dict)
    return summaries


def predict(pipeline: Pipeline, npz: Path, class_file: Path, out: Path) -> None:
    """Segment the validation NPZ from prompts: first scored as in the challenge, then unscored."""
    student = ["--checkpoint", out / "student" / "student.pth"]
    pipeline.step(
        "6 again, by the rules of the challenge: whole volumes from prompts alone",
        *["validation_student.py", "--protocol", "challenge", "--images", npz],
        *["--json", class_file, *student],
        *["--out-dir", out / "challenge_student", "--pictures", 3],
    )
    pipeline.step(
        "segment cases that have prompts and no truth",
        *["predict.py", "--input", npz, "--output", out / "answers", "--timing", *student],
    )


def run(args: argparse.Namespace) -> tuple[Path, dict[str, dict], list[str]]:
    """Run the six steps.

    Returns:
        The folder of all outputs, the summaries of teacher and student, and the scripts that
        left out a case.
    """
    out = out_folder(args)
    with owned(out):
        return run_steps(args, out)


def run_steps(args: argparse.Namespace, out: Path) -> tuple[Path, dict[str, dict], list[str]]:
    """Run the six steps in ``out``; return as `run` does."""
    pipeline = Pipeline()
    npz = gather_cases(args.data, out)
    folders = {
        split: pipeline.prepare(npz[split], out / split, out / f"{split}_classified", args.json)
        for split in ("train", "val")
    }
    out = out / f"{args.steps}_steps"  # another number of steps gives other networks
    train(pipeline, folders["train"], out, args.steps)
    summaries = validate(pipeline, folders["val"], out)
    predict(pipeline, npz["val"], args.json, out)
    return out, summaries, pipeline.failed


def table(summaries: dict[str, dict]) -> str:
    """Return the scores, times and sizes of teacher and student, and the score of the ball."""
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
def main() -> int:
    started = time.monotonic()
    out, summaries, failed = run(parse_args())
    curve = out / "dsc.png"
    ball = ("ball at click 1", summaries["teacher"]["ball_dsc"])
    curves = {name: summary["dsc"] for name, summary in summaries.items()}
    save(click_curve_figure(curves, ylabel="DSC", baseline=ball), curve)
    print(f"\n{table(summaries)}\n\npictures  {curve}")
    for summary in summaries.values():
        print(f"          {Path(summary['out_dir']) / 'pictures'}")
    print(f"report    {out / 'challenge_student' / 'report.html'}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    if failed:
        print(f"{', '.join(failed)} left out cases: see the messages above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    main()
