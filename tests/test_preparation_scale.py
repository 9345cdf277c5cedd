"""Preparation of many cases in odd places: what is found, planned and refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from preparation_helpers import (
    LIVER,
    LUNG,
    ROOT,
    SCRIPTS,
    categorize_all,
    classify_all,
    output,
    prepare_all,
    reallocate_all,
    run_script,
    state_of,
)

import categorize
from utils.errors import InputError
from utils.preparation.find_files import find_npz

pytestmark = pytest.mark.usefixtures("workplace")
NAMESPACES = ["unshare", "--map-root-user", "--mount"]
needs_namespaces = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*NAMESPACES, "true"], check=False).returncode,
    reason="this system lets no user mount in a namespace of his own",
)
STEPS = (classify_all, categorize_all, reallocate_all)


def in_namespace(mount, script, *flags, after="true"):
    """Run a script where root of a namespace has mounted something, which needs no root outside."""
    run = f"{sys.executable} {ROOT / script} --workers 1 {' '.join(flags)}"
    return subprocess.run(
        [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            f"{mount} && {run}; R=$?; {after}; exit $R",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def make_many(make_case, count=6):
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = rng.integers(0, 200, (20, 60, 60), np.uint8)
        make_case(Path("data/npz"), f"CT_A_{number}", imgs=noise, gts=noise % 3)


def test_links_to_folders_are_followed_and_loops_are_not(make_case):
    make_case(Path("elsewhere/deep"), "CT_A_1")
    make_case(Path("data/npz"), "CT_A_2")
    Path("data/npz/linked").symlink_to(Path("elsewhere").resolve())
    Path("data/npz/loop").symlink_to(Path("data/npz").resolve())
    Path("elsewhere/deep/up").symlink_to(Path("elsewhere").resolve())
    Path("data/npz/itself").symlink_to("itself")

    assert list(find_npz(Path("data/npz")).files) == ["CT_A_1", "CT_A_2"]
    assert classify_all().done == 2


def test_link_to_nothing_is_a_failure_and_the_others_are_done(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    Path("data/npz/CT_A_2.npz").symlink_to("gone.npz")

    summary = classify_all()

    assert summary.done == 1
    assert "CT_A_2.npz: no such file" in summary.failures[0]


def test_folder_that_cannot_be_listed_is_a_failure_and_the_others_are_done(make_case, monkeypatch):
    make_case(Path("data/npz/open"), "CT_A_1")
    make_case(Path("data/npz/closed"), "CT_A_2")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list any folder
    summary = classify_all()

    assert (summary.done, summary.exit_code) == (1, 1)
    assert "data/npz/closed: cannot be listed (Permission denied)" in summary.failures[0]


@pytest.mark.parametrize("name", ["CT_A_\n1", "CT_A_\udcff", "CT_A_" + "x" * 220])
def test_name_that_cannot_be_a_case_is_a_failure_and_the_others_are_done(make_case, name):
    make_case(Path("data/npz"), name)
    make_case(Path("data/npz"), "CT_A_2")

    summary = classify_all()

    assert summary.done == 1
    assert "cannot be a case's name" in summary.failures[0]


@pytest.mark.parametrize(
    "name", ["CT_A_..", "CT_A_ä ö", "CT_A-1.2.nii", "CT_A_\\..\\x", "CT_A_[1]"]
)
def test_odd_names_reach_the_tree_unchanged(make_case, name):
    make_case(Path("data/npz"), name)

    assert prepare_all() == ["done 1, skipped 0, failed 0"] * 3
    assert output(LIVER, "imagesTr", name).exists()
    assert prepare_all() == ["done 0, skipped 1, failed 0"] * 3


def test_data_sets_whose_keys_begin_alike_keep_their_own_images(make_case):
    for name, brightness in (("CT_A_1", 10), ("CT_A_tumor_1", 90)):
        make_case(Path("data/npz"), name, imgs=np.full((4, 6, 9), brightness, np.uint8))
    prepare_all()

    first = nib.load(output(LIVER, "imagesTr", "CT_A_1")).dataobj
    second = nib.load(output("tumor/CT_A_tumor", "imagesTr", "CT_A_tumor_1")).dataobj
    assert np.asarray(first).max() == 10
    assert np.asarray(second).max() == 90


def test_dry_run_counts_cases_and_room_and_writes_nothing(make_case):
    make_many(make_case)
    make_case(Path("data/npz"), "CT_A_tumor_1")
    make_case(Path("data/npz"), "MR_unknown_1")
    before = state_of(".")

    summary = classify_all("--dry-run")

    assert state_of(".") == before
    assert [line.split() for line in str(summary).splitlines()[:2]] == [
        ["CT_A", "6", "cases"],
        ["CT_A_tumor", "1", "cases"],
    ]
    assert "would do 7 cases, skip 0, and fail at 1" in str(summary)
    assert "nothing was written" in str(summary)
    assert summary.exit_code == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_room_is_planned_for_within_a_factor_of_four(make_case, monkeypatch, script):
    make_many(make_case)
    steps = dict(zip(SCRIPTS, STEPS, strict=True))
    for earlier in SCRIPTS[: SCRIPTS.index(script)]:
        steps[earlier]()
    before = set(state_of("data"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**9))
    plan = str(steps[script]("--dry-run")).splitlines()[-1]
    planned = float(plan.split()[2]) * {"MB": 1e6, "GB": 1e9}[plan.split()[3].strip(",")]

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(int(planned / 2)))
    with pytest.raises(InputError, match=r"needs about .* are free"):
        steps[script]()
    assert set(state_of("data")) == before

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**9))
    assert steps[script]().done == 6
    new = {Path(path) for path in set(state_of("data")) - before}
    inodes = {path.stat().st_ino: path.stat().st_size for path in new if path.suffix == ".gz"}
    assert sum(inodes.values()) <= planned <= 4 * sum(inodes.values()) + 6 * 2**13


class Usage:
    def __init__(self, free):
        self.free = free


@needs_namespaces
@pytest.mark.parametrize("script", SCRIPTS)
def test_file_system_that_fills_up_stops_with_one_message_and_no_half_file(make_case, script):
    make_many(make_case)
    steps = dict(zip(SCRIPTS, STEPS, strict=True))
    for earlier in SCRIPTS[: SCRIPTS.index(script)]:
        steps[earlier]()
    Path("full").mkdir()
    # There is room for the bytes, as the check beforehand says, but not for so many files.
    mount = "mount -t tmpfs -o size=100m,nr_inodes={} tmpfs full"
    flags = ("--out", "full/out")
    if script == "reallocate.py":
        mount = mount.format(100) + " && cp -r data/medical_preprocessed full/out"
        mount += " && mount -o remount,nr_inodes=$(($(df --output=iused full | tail -1) + 12)) full"
        flags = ("--tree", "full/out")

    result = in_namespace(mount.format(16), script, *flags, after="find full -name '.tmp-*'")

    assert result.returncode == 1
    assert result.stderr.count("WriteError: full/out/") == 1
    assert "No space left on device" in result.stderr
    assert "MiB are free in" in result.stderr
    assert result.stdout == ""


@needs_namespaces
def test_file_system_without_room_is_refused_before_the_first_case(make_case):
    make_many(make_case)
    Path("full").mkdir()

    result = in_namespace(
        "mount -t tmpfs -o size=60k tmpfs full",
        *("classify.py", "--out", "full/out"),
        after="find full -type f",
    )

    assert result.returncode == 1
    assert "InputError: full/out: classify needs about" in result.stderr
    assert result.stdout == ""


@needs_namespaces
def test_read_only_target_stops_with_one_message(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    Path("closed").mkdir()

    result = in_namespace("mount -t tmpfs -o ro tmpfs closed", "classify.py", "--out", "closed/out")

    assert result.returncode == 1
    assert result.stderr.startswith("WriteError: closed/out/")
    assert "Read-only file system" in result.stderr


@needs_namespaces
def test_read_only_inputs_are_enough(make_case):
    make_case(Path("data/npz"), "CT_A_1")

    mount = "mount --bind data/npz data/npz && mount -o remount,bind,ro data/npz"
    result = in_namespace(mount, "classify.py")

    assert result.stdout == "done 1, skipped 0, failed 0\n"


def test_worker_that_is_killed_ends_the_run_with_a_message(make_case):
    make_many(make_case)
    Path("sitecustomize.py").write_text(
        "import os, utils.files.npz\n"
        "utils.files.npz.read_npz = lambda *_, **__: os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, ROOT / "classify.py", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{ROOT}"}

    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert result.returncode == 1
    assert "WorkerDiedError: a worker process was killed" in result.stderr
    assert "Run again with a smaller --workers" in result.stderr


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (("--shard", "0/2"), "--shard is '0/2'"),
        (("--shard", "3/2"), "--shard is '3/2'"),
        (("--shard", "half"), "--shard is 'half'"),
        (("--dask-scheduler", "tcp://127.0.0.1:1"), "cannot be reached"),
    ],
)
def test_flags_that_cannot_be_are_refused(make_case, monkeypatch, flags, found):
    monkeypatch.setattr("utils.run.executor.CONNECT_SECONDS", 1)
    make_case(Path("data/npz"), "CT_A_1")

    with pytest.raises(InputError, match=found):
        classify_all(*flags)


def test_volumes_larger_than_allowed_are_failures(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    make_case(Path("data/npz"), "CT_A_2", imgs=np.zeros((2, 2, 2)), gts=np.ones((2, 2, 2)))

    summary = classify_all("--max-voxels", "8")

    assert summary.done == 1
    assert "raise --max-voxels" in summary.failures[0]


def test_log_of_a_short_batch_job_holds_no_progress_bar(make_case):
    make_many(make_case, 3)

    result = run_script("classify.py", "--workers", "1")

    assert (result.stdout, result.stderr) == ("done 3, skipped 0, failed 0\n", "")


def test_cleaning_lists_what_it_drops_and_the_tree_lacks_it(make_case):
    label = np.zeros((4, 6, 9), np.uint8)
    label[0, 0, 0] = label[2:, 2:, 4:] = 1
    label[0, 5, 8] = 2
    make_case(Path("data/npz"), "CT_A_1", gts=label)
    classify_all()

    summary = categorize_all("--keep-components", "1", "--min-volume-mm3", "10")

    assert "Left Lung: 1 of 2 components, 1 of 41 voxels" in summary.dropped[0]
    assert "Liver: volume 3.15 mm3 is below 10" in summary.dropped[0]
    assert np.asarray(nib.load(output(LUNG)).dataobj).sum() == 40
    assert not output(LIVER).exists()
    manifest = Path("data/medical_preprocessed/manifest_categorize.csv").read_text()
    assert "volume 3.15 mm3 is below 10" in manifest


def test_other_cleaning_is_worked_in_and_off_brings_everything_back(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    prepare_all()
    before = state_of("data/medical_preprocessed").keys()

    assert categorize_all("--min-side-mm", "100").done == 1
    assert not output(LIVER).exists()
    assert categorize_all().done == 1
    assert reallocate_all().exit_code == 0
    assert state_of("data/medical_preprocessed").keys() == before


def test_folder_that_takes_two_spellings_is_said_aloud(make_case, capsys):
    Path("CVPR25.json").write_text(
        '{"CT_A": {"1": "Left Lung", "instance_label": 0},'
        ' "CT_A_tumor": {"1": "left-lung", "instance_label": 1}}'
    )
    for name in ("CT_A_1", "CT_A_tumor_1"):
        make_case(Path("data/npz"), name, gts=np.ones((4, 6, 9), np.uint8))
    prepare_all()

    note = "NOTE left_lung: the folder takes 'Left Lung' (CT_A), 'left-lung' (CT_A_tumor)"
    assert note in capsys.readouterr().err


def test_check_of_a_prepared_tree_finds_nothing_until_it_is_broken(make_case):
    make_many(make_case)
    make_case(Path("data/npz"), "CT_A_tumor_1")
    prepare_all()
    check = categorize.parse_args(["--check", "data/medical_preprocessed", "--workers", "2"])

    report = categorize.run(check)
    assert (report.exit_code, report.totals["labels"]) == (0, 13)

    output(LIVER, "imagesTr").unlink()
    result = run_script("categorize.py", "--check", "data/medical_preprocessed", "--workers", "1")
    assert result.returncode == 1
    assert "missing image" in result.stdout
    assert "liver/CT_A/labelsTr/CT_A_1.nii.gz" in result.stdout


def test_label_of_64_bits_takes_little_more_memory_than_the_file_says(make_case):
    """34 million voxels: 268 MB as int64 in the file, 34 MB as uint8 afterwards."""
    label = np.zeros((128, 512, 512), np.int64)
    label[100:120, 200:300, 200:300] = 1
    make_case(Path("data/npz"), "CT_A_1", gts=label, imgs=label.astype(np.uint8))
    status = "open('/proc/self/status').read()"  # unlike ru_maxrss not inherited from pytest
    prelude = (
        f"import atexit; atexit.register(lambda: print({status}.split('VmHWM:')[1].split()[0]))"
    )

    result = run_script("classify.py", "--workers", "1", prelude=prelude)

    summary, peak = result.stdout.splitlines()
    assert summary == "done 1, skipped 0, failed 0"
    assert 1024 * int(peak) < label.nbytes + label.size + 150e6
