"""--resume continues only the run that was stopped: other flags are refused by name."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from small_cases import write_prepared
from small_networks import save_student, save_teacher
from training_rows import rows_of

import distillation
import preparelabel
from utils.errors import InputError

FLAGS = ["--batch-size", "2", "--workers", "0", "--warmup", "0", "--device", "cpu"]
TEACHER = {
    "num-clicks": 3, "start-clicks": 1, "mask-dropout": 0.5, "flip-share": 0.25,
    "loss-size": 32, "box-share": 0.5, "free-turns": 1, "augment": "none",
    "zoom-share": 0.25, "region-share": 0.5, "region-share-end": 0.1, "generated-share": 0.25,
    "generated-share-end": 0.125, "decoder-lr-scale": 0.5, "spacing-mm": 2,
    "val-share": 0.5, "val-crops": 1,
}  # fmt: skip
STUDENT = {
    "online": None, "layer-share": 0.5, "embedding-share": 0.5, "tune-decoder": 0.25,
    "logit-weight": 2, "truth-weight": 0.5,
}  # fmt: skip
BOTH = {
    "steps": 8, "minutes": 8, "batch-size": 1, "accumulation": 2, "optimizer": "muon", "lr": 1e-2,
    "lr-schedule": "constant", "warmup": 0.5, "weight-decay": 9, "clip": 7, "validate-every": 2,
    "patience": 3, "seed": 5, "precision": "bfloat16", "checkpoint": "other.pt",
    "network": "fastsam3d",
}  # fmt: skip
#: Flags that may differ: how a run is carried out, names of folders, and what follows a training.
FREE = {
    *("workers", "device", "save-minutes", "resume", "help"),
    *("out-dir", "teacher-dir", "crops-dir", "from-crops", "img-datas", "val-datas"),
    *("no-store", "stored-clicks", "store-layers", "store-precision", "shard-mb"),
}
#: Flags of a network from scratch: a checkpoint, as here, fixes the network.
FROM_SCRATCH = {"set", "fit-spacing", "no-fit-spacing", "init-from-teacher", "no-init-from-teacher"}
#: Compared as the crops that follow from them, and in distillation.py with --online alone.
OF_CROPS = {"max-instances", "min-instance-voxels", "val-share", "val-crops"}
OF_CROPS |= {"num-clicks", "augment", "zoom-share", "flip-share"}
OF_CROPS |= {"region-share", "region-share-end"}
OF_CROPS |= {"generated-share", "generated-share-end"}
MENTIONED = {"online"}  # in help texts of the other script


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Finished runs of teacher and student, whose last.pt is resumed in copies of their folders."""
    folder = tmp_path_factory.mktemp("stopped")
    tree = write_prepared(folder / "tree", cases=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_teacher(Path("t.pt"))
        save_teacher(Path("other.pt"), seed=9)
        save_student(Path("s.pt"))
        teach(["--img-datas", str(tree)])
        distil([])
    return folder


@pytest.fixture(autouse=True)
def copied(stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")


def teach(flags):
    small = ["--num-clicks", "2", "--loss-size", "16", "--checkpoint", "t.pt", "--out-dir", "t"]
    images = [] if "--img-datas" in flags else ["--from-crops"]
    folders = ["--crops-dir", "crops", "--teacher-dir", "outputs"]
    flags = [*FLAGS, *length(flags), *small, *folders, *images, *flags]
    return preparelabel.run(preparelabel.parse_args(flags))


def distil(flags):
    folders = ["--crops-dir", "crops", "--teacher-dir", "outputs", "--out-dir", "s"]
    return distillation.run(
        distillation.parse_args([*FLAGS, *length(flags), "--checkpoint", "s.pt", *folders, *flags])
    )


def length(flags):
    return [] if "--minutes" in flags else ["--steps", "4"]


def flag(name, value):
    validated = ["--validate-every", "2"] if name in ("patience", "val-share", "val-crops") else []
    held_out = ["--val-share", "0.5"] if validated or name == "validate-every" else []
    return [*held_out, *validated, f"--{name}", *([] if value is None else [str(value)])]


@pytest.mark.parametrize(("name", "value"), [*TEACHER.items(), *BOTH.items()])
def test_teacher_is_not_resumed_with_another_flag(name, value):
    before = Path("t/last.pt").read_bytes()

    with pytest.raises(InputError) as error:
        teach(["--resume", *flag(name, value)])

    assert f"--{name}" in str(error.value) or name == "network"
    assert Path("t/last.pt").read_bytes() == before


@pytest.mark.parametrize(("name", "value"), [*STUDENT.items(), *BOTH.items()])
def test_student_is_not_resumed_with_another_flag(name, value):
    if name == "checkpoint":
        save_student(Path("other.pt"), seed=5)

    with pytest.raises(InputError) as error:
        distil(["--resume", *flag(name, value)])

    assert f"--{name}" in str(error.value) or name == "network"


def test_all_flags_that_differ_are_named_with_both_values():
    with pytest.raises(InputError) as error:
        teach(["--resume", "--lr", "1", "--seed", "7"])

    assert "  --lr: found 1.0, expected 0.0008\n" in str(error.value)
    assert "  --seed: found 7, expected 0\n" in str(error.value)
    assert "--clip" not in str(error.value)


@pytest.mark.parametrize("resume", [teach, distil])
def test_flags_that_may_differ_do(resume):
    other = ["--workers", "1", "--save-minutes", "3", "--device", "auto"]

    assert resume(["--resume", *other]).fit.steps == 4


@pytest.mark.parametrize(("script", "compared"), [(preparelabel, TEACHER), (distillation, STUDENT)])
def test_every_flag_is_compared_or_free(script, compared, capsys):
    """A new flag has to be put in one of the lists above."""
    with pytest.raises(SystemExit):
        script.parse_args(["--help"])
    options = capsys.readouterr().out.partition("options:")[2]
    flags = set(re.findall(r"--([a-z][a-z-]*[a-z])", options))
    known = {*compared, *BOTH, *FREE, *FROM_SCRATCH, *OF_CROPS, *MENTIONED}

    assert flags - known == set()


def test_other_crops_are_refused(tmp_path):
    index = json.loads(Path("crops/index.json").read_text())
    index["samples"].reverse()
    Path("crops/index.json").write_text(json.dumps(index))

    with pytest.raises(InputError, match=r"crops \(--img-datas.*\): found 4 targets, digest"):
        teach(["--resume"])


def test_the_same_samples_a_step_may_be_shared_otherwise():
    assert teach(["--resume", "--batch-size", "1", "--accumulation", "2"]).fit.steps == 4


def weights(folder):
    state = torch.load(Path(folder) / "last.pt", weights_only=True)["model_state_dict"]
    return torch.cat([tensor.flatten().double() for tensor in state.values()])


def test_more_steps_are_refused_where_turns_follow_from_their_number():
    growing = ["--lr-schedule", "constant", "--start-clicks", "1", "--out-dir", "a"]
    teach(growing)

    with pytest.raises(InputError, match="--steps that turns and targets follow: found 6"):
        teach([*growing, "--resume", "--steps", "6"])


def test_more_steps_at_a_constant_rate_end_like_a_run_of_that_length():
    constant = ["--lr-schedule", "constant"]
    teach([*constant, "--out-dir", "a"])
    teach([*constant, "--out-dir", "a", "--resume", "--steps", "6"])
    teach([*constant, "--out-dir", "b", "--steps", "6"])

    assert torch.equal(weights("a"), weights("b"))
    rows = [rows_of(Path(name)) for name in ("a", "b")]
    assert [row.pop("done") for row in rows[0]] == [0, 1 / 4, 2 / 4, 3 / 4, 4 / 6, 5 / 6]
    assert [row.pop("done") for row in rows[1]] == [step / 6 for step in range(6)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_more_steps_are_refused_where_the_rate_depends_on_their_number(schedule):
    teach(["--lr-schedule", schedule, "--out-dir", "a"])

    with pytest.raises(InputError, match=r"--steps: found 8, expected 4.*learning rates follow"):
        teach(["--lr-schedule", schedule, "--out-dir", "a", "--resume", "--steps", "8"])


def test_more_steps_are_refused_where_the_stages_depend_on_their_number():
    same = ["--lr-schedule", "constant", "--embedding-share", "0.5", "--out-dir", "a"]
    distil(same)

    with pytest.raises(InputError, match=r"--steps: found 8, expected 4.*stages follow"):
        distil([*same, "--resume", "--steps", "8"])


def test_a_file_of_an_earlier_version_is_resumed_with_a_warning(caplog):
    content = torch.load("t/last.pt", weights_only=True)
    del content["run"]
    torch.save(content, "t/last.pt")

    assert teach(["--resume"]).fit.steps == 4
    assert "cannot be compared" in Path("t/run.log").read_text()


def changed_optimizer(content, **changes):
    content["training_state"]["optimizer"]["param_groups"][0].update(changes)


def test_both_scripts_train_for_minutes():
    # Six seconds: on a busy machine a step may take one.
    teacher = teach(["--minutes", "0.1", "--out-dir", "a"]).fit
    shares = ["--layer-share", "0", "--embedding-share", "0.2"]
    student = distil(["--minutes", "0.1", *shares, "--out-dir", "b"]).fit

    for name, report in (("a", teacher), ("b", student)):
        rows = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        assert report.steps == len(rows) > 1
        assert rows[-1]["minutes"] < 0.1
        assert 0.3 < rows[-1]["done"] < 1
    assert "loss_logits" not in rows[0]
    assert "loss_logits" in rows[-1]


@pytest.mark.parametrize("script", [preparelabel, distillation])
def test_steps_and_minutes_exclude_each_other(script, capsys):
    with pytest.raises(SystemExit):
        script.parse_args(["--steps", "4", "--minutes", "4"])

    assert "argument --minutes: not allowed with argument --steps" in capsys.readouterr().err
    assert script.parse_args(["--minutes", "4"]).steps is None


DAMAGE = {
    "no state": lambda c: c.update(training_state={}),
    "a number as state": lambda c: c.update(training_state=3),
    "another optimizer": lambda c: c["training_state"].update(optimizer={"a": 1}),
    "step as text": lambda c: c.update(step="2"),
    "negative step": lambda c: c.update(step=-5),
    "step beyond the run": lambda c: c.update(step=10**18),
    "step NaN": lambda c: c.update(step=float("nan")),
    "no step": lambda c: c.pop("step"),
    "another weight decay": lambda c: changed_optimizer(c, weight_decay="x"),
    "another base rate": lambda c: changed_optimizer(c, initial_lr=7.0),
    "moments of another shape": lambda c: c["training_state"]["optimizer"]["state"][0].update(
        exp_avg=torch.zeros(3)
    ),
    "moments that are not finite": lambda c: c["training_state"]["optimizer"]["state"][0][
        "exp_avg_sq"
    ].fill_(torch.nan),
    "weights that are not finite": lambda c: next(iter(c["model_state_dict"].values())).fill_(
        torch.nan
    ),
    "flags as a list": lambda c: c.update(run=[1]),
    "no flags": lambda c: c.update(run={}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named(damage):
    content = torch.load("t/last.pt", weights_only=True)
    DAMAGE[damage](content)
    torch.save(content, "t/last.pt")

    with pytest.raises(InputError, match=r"t/last\.pt: .*"):
        teach(["--resume"])
