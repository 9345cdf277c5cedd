"""A report, a picture or an export is written to a new file, or over one of the same script."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from preparation_helpers import ROOT
from small_networks import save_student

from benchmarks import cold_start, floors, geometry, growth, latency, preparation, training, waiting
from segment_anything.export import main as export
from utils.cases.phantoms import write_phantoms
from utils.cases.prepared import write_modality
from utils.errors import InputError


def overview():
    spec = importlib.util.spec_from_file_location("overview", ROOT / "docs/draw_overview.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reports():
    yield from ((s, "--json") for s in (cold_start, floors, growth, latency, preparation))
    yield from ((training, "--json"), (waiting, "--json"), (geometry, "--out"))
    yield (overview(), "--out")


@pytest.mark.parametrize(("script", "flag"), reports(), ids=lambda value: str(value))
def test_report_replaces_no_file(script, flag, tmp_path, capsys):
    (tmp_path / "mine.json").write_text("mine")
    needed = ["--images", "i", "--checkpoint", "c"] if script is geometry else []

    with pytest.raises(SystemExit):
        script.parse_args([*needed, flag, str(tmp_path / "mine.json")])

    assert "mine.json, which is there already; expected a new file" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == "mine"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    save_student(folder / "s.pth")
    assert export(["--checkpoint", str(folder / "s.pth"), "--out", str(folder / "onnx")]) == 0
    return folder


@pytest.mark.parametrize("name", ["image_encoder.onnx", "prompt_decoder.onnx", "export.json"])
@pytest.mark.parametrize("content", ["mine", "{}", "[" * 10**5])
def test_export_keeps_files_of_another_origin(exported, tmp_path, name, content, capsys):
    shutil.copytree(exported / "onnx", tmp_path / "onnx")
    (tmp_path / "onnx" / name).write_text(content)

    code = export(["--checkpoint", str(exported / "s.pth"), "--out", str(tmp_path / "onnx")])

    assert code == 1
    assert f"{name}: was not written by this script" in capsys.readouterr().err
    assert (tmp_path / "onnx" / name).read_text() == content


def test_export_follows_another_in_one_folder(exported, tmp_path):
    shutil.copytree(exported / "onnx", tmp_path / "onnx")
    save_student(tmp_path / "other.pth", seed=9)

    code = export(["--checkpoint", str(tmp_path / "other.pth"), "--out", str(tmp_path / "onnx")])

    assert code == 0
    facts = [json.loads((f / "onnx/export.json").read_text()) for f in (exported, tmp_path)]
    assert facts[0]["fingerprint"] != facts[1]["fingerprint"]


def test_phantoms_replace_no_other_case(tmp_path):
    path = tmp_path / "CT_AMOS_phantom_0001.npz"
    np.savez(path, imgs=np.zeros((2, 2, 2), np.uint8))
    before = path.read_bytes()

    with pytest.raises(InputError, match="holds another case"):
        write_phantoms(tmp_path, 1, seed=0)

    assert path.read_bytes() == before


def test_modality_is_not_written_behind_a_link(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "CT_A.json").write_text("mine")
    Path(tmp_path / "tree").mkdir()
    (tmp_path / "tree/.modalities").symlink_to(mine)

    with pytest.raises(InputError, match=r"\.modalities: is a link"):
        write_modality(tmp_path / "tree", "CT_A", "CT")

    assert (mine / "CT_A.json").read_text() == "mine"
