"""The page in a browser: what a user clicks is what predict.py segments."""

import json

import numpy as np
import pytest

pytest.importorskip(
    "starlette", reason="no package starlette: pip install -r requirements-serve.txt"
)

from page_helpers import User, browser, require_browser, served
from serving_helpers import CENTRES, SHAPE, small_context, small_predictor, voxels
from small_networks import save_student

import predict
from utils.files.nifti import write_nifti
from utils.prediction.session import PredictorOptions
from utils.serving.scan import IntensityFlags, open_scan

SPACING_XYZ = (1.2, 1.1, 1.0)
#: Affines, and the view whose slices are those of the file: axes that grow towards left, back and
#: head, as in most CT; and oblique ones in another order.
SCANS = {
    "LPS": (np.diag([-1.2, -1.1, 1.0, 1.0]), "axial"),
    "oblique": (
        np.array(
            [[0.1, 0.0, 1.0, 3.0], [1.15, 0.2, 0.0, -5.0], [0.0, -1.08, 0.1, 7.0], [0, 0, 0, 1.0]]
        ),
        "sagittal",
    ),
}


@pytest.fixture(scope="module")
def chromium():
    return require_browser()


@pytest.fixture
def scan_file(tmp_path):
    return write_scan(tmp_path, SCANS["LPS"][0])


def write_scan(folder, affine):
    path = folder / "scan.nii.gz"
    write_nifti(path, voxels(), affine)
    return path


def context_of(folder, scan_file=None, **changes):
    scan = scan_file and open_scan(scan_file, IntensityFlags(), 10**6)
    return small_context(folder, scan, **changes)


def predicted(folder, scan_file, prompts: bytes) -> bytes:
    """The label file of predict.py with the prompts that the page saved."""
    scan_file.with_name("scan.json").write_bytes(prompts)
    words = ["--input", scan_file, "--output", folder / "out", "--device", "cpu"]
    words += ["--checkpoint", save_student(folder / "student.pth")]
    (answer,) = predict.run(predict.parse_args(list(map(str, words)))).written
    return answer.read_bytes()


@pytest.mark.parametrize("scan", SCANS)
def test_a_session_by_mouse_saves_the_file_of_predict(chromium, tmp_path, scan):
    affine, view = SCANS[scan]
    scan_file = write_scan(tmp_path, affine)
    # With predict.py's options, not the quick ones of other tests.
    context = context_of(tmp_path, scan_file, predictor=small_predictor(PredictorOptions()))
    first, second = CENTRES
    with served(context) as url, browser(chromium, tmp_path) as tab:
        user = User(tab, url)
        user.click(first, view)
        user.click((first[0], 2, 2), view, button="right")
        user.click((first[0], 3, 20), view)
        tab.click("#undo")
        state = user.settled()
        (target,) = state["targets"]
        assert target["prompts"] == [
            {"type": "point", "at": list(first), "positive": True},
            {"type": "point", "at": [first[0], 2, 2], "positive": False},
        ]
        tab.click("#add")
        user.settled()
        state = user.drag((second[0], 12, 16), (second[0], 20, 24), view)
        (box,) = state["targets"][1]["prompts"]
        assert (box["from"][1:], box["to"][1:]) == ([12, 16], [20, 24])
        assert box["from"][0] < second[0] < box["to"][0]  # drawn on one slice, and reaches further
        state = user.click(second, view)
        shown = np.array(user.labels(), np.uint8).reshape(SHAPE)
        assert [np.count_nonzero(shown == target["id"]) for target in state["targets"]] == [
            target["voxels"] for target in state["targets"]
        ]
        assert all(target["voxels"] for target in state["targets"])
        assert len({target["color"] for target in state["targets"]} - {""}) == 2
        assert "Mask in" in tab.text_content("#answer")
        prompts = user.download("save-prompts", "prompts-menu")
        saved = user.download("save-labels", "save-menu")
        assert user.faults == []
    assert saved == predicted(tmp_path, scan_file, prompts)


def test_the_keyboard_does_what_the_mouse_does(chromium, tmp_path, scan_file):
    with served(context_of(tmp_path, scan_file)) as url, browser(chromium, tmp_path) as tab:
        user = User(tab, url)
        tab.focus("#overlay")
        user.go_to((6, 7, 8))
        state = user.press("Enter")
        assert state["targets"][0]["prompts"] == [
            {"type": "point", "at": [6, 7, 8], "positive": True}
        ]
        user.press("PageUp")
        user.press("ArrowRight")  # the screen's right is the patient's left, where x grows
        user.press("ArrowUp")
        state = user.press("Shift+Enter")
        assert state["targets"][0]["prompts"][1] == {
            "type": "point", "at": [7, 6, 9], "positive": False
        }  # fmt: skip
        user.press("n")
        user.press("b")
        for key in ("Shift+ArrowRight", "ArrowDown", "PageUp"):
            user.press(key)
        state = user.press("b")
        assert state["targets"][1]["prompts"] == [
            {"type": "box", "from": [7, 6, 9], "to": [8, 7, 19]}
        ]
        state = user.press("1")
        state = user.press("c")
        assert [len(target["prompts"]) for target in state["targets"]] == [0, 1]
        user.press("Control+z")
        state = user.press("Control+z")
        assert [len(target["prompts"]) for target in state["targets"]] == [2, 0]
        state = user.press("Control+Shift+z")
        assert [len(target["prompts"]) for target in state["targets"]] == [2, 1]
        for key in ("t", "t", "Shift+t"):  # targets 2, 1 and 2
            user.press(key)
        state = user.press("Delete")
        assert [target["id"] for target in state["targets"]] == [1]
        assert user.faults == []


def test_an_image_is_opened_and_prompts_are_loaded_from_files(chromium, tmp_path, scan_file):
    prompts = {
        "coordinates": "zyx",
        "targets": [{"id": 3, "name": "ball", "points": [{"at": list(CENTRES[0])}]}],
    }
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(prompts))
    wrong = tmp_path / "wrong.nii.gz"
    wrong.write_bytes(b"no image")
    with served(context_of(tmp_path)) as url, browser(chromium, tmp_path) as tab:
        user = User(tab, url)
        assert tab.is_visible("#empty")
        tab.set_input_files("#image-file", wrong)
        tab.wait_for_selector(".message.error")
        assert "wrong.nii.gz" in tab.text_content(".message.error")
        tab.set_input_files("#image-file", scan_file)
        user.wait("fastsam3d.viewer.order && document.getElementById('veil').hidden")
        tab.set_input_files("#prompts-file", file)
        user.wait("fastsam3d.session.state.targets[0].id === 3")
        state = user.settled()
        assert [target["name"] for target in state["targets"]] == ["ball"]
        assert np.count_nonzero(user.labels()) == state["targets"][0]["voxels"] > 0
        shown = tab.text_content("#image-name")
        assert "28 \N{MULTIPLICATION SIGN} 24" in shown


def test_a_reloaded_page_shows_the_masks_again(chromium, tmp_path, scan_file):
    with served(context_of(tmp_path, scan_file)) as url, browser(chromium, tmp_path) as tab:
        user = User(tab, url)
        before = user.click(CENTRES[0])
        tab.reload()
        user.wait("fastsam3d.session.state && document.getElementById('veil').hidden")
        after = user.settled()
        assert after["session"] == before["session"]
        assert np.count_nonzero(user.labels()) == before["targets"][0]["voxels"] > 0
