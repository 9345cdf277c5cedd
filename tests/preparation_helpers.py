"""Running the three data scripts in a test: a class file, the steps, what they wrote."""

import os
import subprocess
import sys
import time
from pathlib import Path

import categorize
import classify
import reallocate

ROOT = Path(__file__).parent.parent
SCRIPTS = ("classify.py", "categorize.py", "reallocate.py")
CLASSES = {
    "CT_A": {"1": ["Left Lung"], "2": ["Liver", "Liver in CT"], "instance_label": 0},
    "CT_A_tumor": {"1": ["Tumor"], "instance_label": 1},
}
LUNG = "left_lung/CT_A"
LIVER = "liver/CT_A"


def classify_all(*flags):
    return classify.run(classify.parse_args(["--workers", "1", *flags]))


def categorize_all(*flags):
    return categorize.run(categorize.parse_args(["--workers", "1", *flags]))


def reallocate_all(*flags):
    return reallocate.run(reallocate.parse_args(["--workers", "1", *flags]))


STEPS = (classify_all, categorize_all, reallocate_all)


def prepare_all():
    """Run the three steps with their default folders."""
    return [str(step()) for step in STEPS]


def prepare_before(step):
    """Run the steps that come before ``step``."""
    for earlier in STEPS[: STEPS.index(step)]:
        earlier()


def output(folder, kind="labelsTr", case_id="CT_A_1"):
    return Path("data/medical_preprocessed") / folder / kind / f"{case_id}.nii.gz"


def state_of(folder):
    """Content, inode and time of every file below ``folder``, the ledgers' records apart."""
    files = (
        p for p in sorted(Path(folder).rglob("*")) if p.is_file() and ".records" not in p.parts
    )
    return {
        str(path): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
        for path in files
    }


def age(folder):
    """Make every file below ``folder`` ten seconds old, so that what is written now is newer."""
    then = time.time() - 10
    for path in Path(folder).rglob("*.*"):
        os.utime(path, (then, then))


def run_script(name, *flags, prelude="pass"):
    """Run a script as a user does, after the statement ``prelude``."""
    code = f"import runpy; {prelude}; runpy.run_path({str(ROOT / name)!r}, run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
