"""How threads wait is set before torch and NumPy are loaded, by every script that computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import waiting

ROOT = Path(__file__).parent.parent
SCRIPTS = (
    "preparelabel", "distillation", "validation", "validation_student", "predict", "serve",
)  # fmt: skip

#: Imports a script up to its first import of a package, and prints the setting that this would see.
WATCH = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[2]:
            raise SystemExit

sys.meta_path.insert(0, Watch())
try:
    __import__(sys.argv[1])
finally:
    print(os.environ.get(sys.argv[3]), sys.argv[2] in sys.modules)
"""
TORCH = ("torch", "GOMP_SPINCOUNT")
NUMPY = ("numpy", "OPENBLAS_NUM_THREADS")


def python(*arguments, **environment):
    kept = {key: value for key, value in os.environ.items() if key not in waiting.SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", *arguments],
        cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_sets_it_before_torch(script):
    assert python(WATCH, script, *TORCH).split() == ["10000", "False"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_numpys_products_have_one_thread(script, monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert python(WATCH, script, *NUMPY).split() == ["1", "False"]
    assert python(WATCH, script, *NUMPY, OPENBLAS_NUM_THREADS="2").split() == ["2", "False"]


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [("OMP_WAIT_POLICY", "ACTIVE", "None"), ("GOMP_SPINCOUNT", "7", "7")],
)
def test_the_users_own_setting_stays(name, value, seen):
    assert python(WATCH, "validation", *TORCH, **{name: value}).split()[0] == seen


def test_torchs_openmp_takes_it():
    told = python("import validation, torch", OMP_DISPLAY_ENV="VERBOSE")
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("this build of PyTorch has another OpenMP than GNU's")
    assert "GOMP_SPINCOUNT = '10000'" in told


def test_the_benchmark_times_a_form_beside_a_busy_process():
    form = "few spins (ours)"
    seconds, numbers = waiting.in_a_process("training", form, busy=1, runs=1)
    assert len(seconds) == 1
    assert seconds[0] > 0
    assert all(number > 0 for number in numbers)  # loss and gradient norm
    row = {"work": "training", "busy": 1, "form": form, "times_first": 1.0, "same": True}
    told = waiting.report_table({"rows": [row | {"summary": waiting.summary(seconds)}]})
    assert "| training | 1" in told
