"""A run replaces nothing in an output folder that no run of the same script wrote to."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_cases import write_prepared
from small_networks import save_student, save_teacher

import distillation
import preparelabel
import validation
from utils.errors import InputError
from utils.run.folder import require_own_folder
from utils.training.crop_cache import build_cache

SMALL = ["--batch-size", "1", "--workers", "0", "--device", "cpu", "--steps", "2"]
TEACHING = ["--num-clicks", "2", "--loss-size", "16", "--crops-dir", "crops"]
NAMES = {
    preparelabel: (*preparelabel.WRITES, "run.log"),
    distillation: (*distillation.WRITES, "student.pth", "run.log"),
    validation: (
        *("report.html", "cases.csv", "organs.csv", "summary.json", "dsc.png", "nsd.png"),
        *("cases", "predictions", "pictures", "run.log", "args.json"),
    ),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a finished training, with its cases and its networks."""
    folder = tmp_path_factory.mktemp("stopped")
    write_prepared(folder / "tree")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_teacher(Path("t.pt"))
        save_student(Path("s.pt"))
        run(preparelabel)
        run(distillation, "--out-dir", "student")
    return folder


@pytest.fixture(autouse=True)
def copied(stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")


def run(script, *flags):
    if script is preparelabel:
        own = [*SMALL, *TEACHING, "--checkpoint", "t.pt", "--img-datas", "tree/liver/CT_A"]
        own += ["--teacher-dir", "outputs", "--out-dir", "out"]
    elif script is distillation:
        own = [*SMALL, "--checkpoint", "s.pt", "--crops-dir", "crops", "--teacher-dir", "outputs"]
    else:
        own = ["--checkpoint", "t.pt", "--val-datas", "tree/liver/CT_A", "--num-clicks", "1"]
        own += ["--workers", "1", "--device", "cpu"]
    return script.run(script.parse_args([*own, *flags]))


def content_of(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script, names in NAMES.items() for name in names]
)
def test_file_of_another_origin_is_kept(script, name):
    Path("mine").mkdir()
    Path("mine", name).write_text("mine")

    with pytest.raises(InputError, match=f"(?s){name}.*another --out-dir"):
        run(script, "--out-dir", "mine")

    assert content_of("mine") == {Path("mine", name): b"mine"}


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"seed": 1, "script": "x.py"}', '{"seed": 1, "lr": 1}']
)
def test_flags_of_another_program_are_kept(content):
    Path("mine").mkdir()
    Path("mine/args.json").write_text(content)

    with pytest.raises(InputError, match=r"args\.json.*another --out-dir"):
        require_own_folder(Path("mine"), "validation.py", ())


def test_other_files_may_lie_in_the_folder():
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")

    run(validation, "--out-dir", "mine")

    assert Path("mine/notes.txt").read_text() == "mine"
    assert Path("mine/report.html").exists()


def test_folder_of_another_script_is_refused():
    with pytest.raises(InputError, match=r"out/args\.json: is not from a run of distillation"):
        run(distillation, "--out-dir", "out")


def test_validation_follows_another_in_one_folder():
    for clicks in ("1", "2"):
        run(validation, "--out-dir", "scores", "--num-clicks", clicks)

    assert json.loads(Path("scores/args.json").read_text())["num_clicks"] == 2


@pytest.mark.parametrize("flags", [["--resume", "--seed", "9"], ["--seed", "9"]])
@pytest.mark.parametrize(("script", "out"), [(preparelabel, "out"), (distillation, "student")])
def test_refused_run_keeps_the_flags_of_the_stopped_run(script, out, flags):
    before = Path(out, "args.json").read_text()

    with pytest.raises(InputError, match="--resume"):
        run(script, "--out-dir", out, *flags)

    assert Path(out, "args.json").read_text() == before


def test_resumed_run_saves_its_flags():
    run(preparelabel, "--resume", "--save-minutes", "7")

    assert json.loads(Path("out/args.json").read_text())["save_minutes"] == 7


def test_storing_outputs_keeps_the_flags_of_the_training():
    before = Path("out/args.json").read_text()

    run(preparelabel, "--steps", "0", "--checkpoint", "out/last.pt")

    assert Path("out/args.json").read_text() == before


CHECKPOINTS = {
    "outputs/teacher.pt": (preparelabel, ["--out-dir", "new"]),
    "new/best.pt": (preparelabel, ["--out-dir", "new"]),
    "new/last.pt": (distillation, ["--out-dir", "new"]),
    "new/student.pth": (distillation, ["--out-dir", "new"]),
}


@pytest.mark.parametrize("given", CHECKPOINTS)
@pytest.mark.parametrize("linked", [False, True])
def test_given_checkpoint_is_not_replaced(given, linked):
    script, flags = CHECKPOINTS[given]
    Path("new").mkdir()
    shutil.copy("t.pt" if script is preparelabel else "s.pt", given)
    if linked:
        Path("link.pt").symlink_to(given)
    before = Path(given).read_bytes()

    with pytest.raises(InputError, match="is the same file as the input"):
        run(script, *flags, "--checkpoint", "link.pt" if linked else given)

    assert Path(given).read_bytes() == before


def test_network_without_its_last_checkpoint_is_kept():
    Path("out/last.pt").rename("out/best.pt")
    Path("student/last.pt").unlink()
    before = content_of("out") | content_of("student")

    with pytest.raises(InputError, match=r"best\.pt: holds the network of an earlier run"):
        run(preparelabel)
    with pytest.raises(InputError, match=r"student\.pth: holds the student of an earlier run"):
        run(distillation, "--out-dir", "student")

    after = content_of("out") | content_of("student")
    kept = {path for path in before if path.suffix in (".pt", ".pth") or path.name == "args.json"}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}


@pytest.mark.parametrize("name", ["teacher.pt", "index.jsonl"])
def test_file_of_another_origin_in_the_folder_of_outputs_is_kept(name):
    Path("mine").mkdir()
    Path("mine", name).write_text("mine")

    with pytest.raises(InputError, match=f"{name}: is no .*another --teacher-dir"):
        run(preparelabel, "--teacher-dir", "mine", "--out-dir", "new")

    assert content_of("mine") == {Path("mine", name): b"mine"}


def test_files_named_like_shards_are_kept():
    names = ["shard-00001-of-2.safetensors", "rows-of-mine.jsonl"]
    for name in names:
        Path("outputs", name).write_text("mine")

    run(preparelabel, "--out-dir", "new", "--seed", "3")

    assert [Path("outputs", name).read_text() for name in names] == ["mine", "mine"]


def test_damaged_index_of_stored_outputs_is_written_anew():
    Path("outputs/index.jsonl").write_bytes(b"\0" * 9)

    run(preparelabel, "--steps", "0", "--checkpoint", "out/last.pt")

    assert Path("outputs/index.jsonl").read_text().count("\n") == 4


@pytest.mark.parametrize("content", ["mine", "{}", '{"layout": 3}', "[]"])
def test_index_of_another_origin_is_kept(content):
    Path("mine").mkdir()
    Path("mine/index.json").write_text(content)

    with pytest.raises(InputError, match=r"index\.json: is no index.*another --crops-dir"):
        build_cache(["tree/liver/CT_A"], Path("mine"), workers=1)

    assert content_of("mine") == {Path("mine/index.json"): content.encode()}


def test_damaged_index_of_a_crop_cache_is_written_anew():
    before = Path("crops/index.json").read_bytes()
    Path("crops/index.json").write_bytes(b"\0" * 9)

    build_cache(["tree/liver/CT_A"], Path("crops"), workers=1)

    assert Path("crops/index.json").read_bytes() == before


def write_arrays(path):
    np.savez(path, imgs=np.zeros(3))


@pytest.mark.parametrize("write", [write_arrays, lambda path: path.write_text("mine")])
@pytest.mark.parametrize("name", ["CT_A_0.npz", "CT_A_0#7.npz"])
def test_file_in_the_place_of_a_target_is_kept(write, name):
    path = Path("mine/liver/CT_A", name)
    path.parent.mkdir(parents=True)
    write(path)
    before = path.read_bytes()

    for _ in range(2):  # the second run finds the first one's index
        index = build_cache(["tree/liver/CT_A"], Path("mine"), workers=1)

    assert path.read_bytes() == before
    assert len(index.failures) == 1
    assert name in index.failures[0]
    assert len(index.samples) == 2


def test_damaged_target_is_written_anew():
    path = Path("crops/liver/CT_A/CT_A_0.npz")
    before = np.load(path)["bits"]
    path.write_bytes(b"\0" * 9)

    index = build_cache(["tree/liver/CT_A"], Path("crops"), workers=1)

    assert not index.failures
    np.testing.assert_array_equal(np.load(path)["bits"], before)


@pytest.mark.parametrize("name", ["liver", "images"])
def test_nothing_is_written_behind_a_link_in_a_crop_cache(name):
    Path("mine").mkdir()
    Path("elsewhere/CT_A").mkdir(parents=True)
    Path("mine", name).symlink_to(Path("elsewhere").absolute())

    with pytest.raises(InputError, match="behind a link"):
        build_cache(["tree/liver/CT_A"], Path("mine"), workers=1)

    assert content_of("elsewhere") == {}


@pytest.mark.parametrize("name", ["cases", "predictions/liver", "pictures/liver/CT_A"])
def test_validation_writes_nothing_behind_a_link(name):
    run(validation, "--out-dir", "scores")
    Path("scores", name).rename("elsewhere")
    Path("scores", name).symlink_to(Path("elsewhere").absolute())
    before = content_of("elsewhere")

    with pytest.raises(InputError, match="lies behind a link that leads out of"):
        run(validation, "--out-dir", "scores", "--num-clicks", "2")

    assert before
    assert content_of("elsewhere") == before
