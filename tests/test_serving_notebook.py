"""show: the page in a notebook's cell, and its masks as arrays of this process."""

import json
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

pytest.importorskip(
    "starlette", reason="no package starlette: pip install -r requirements-serve.txt"
)

import httpx
from page_helpers import User, browser, require_browser
from preparation_helpers import ROOT
from serving_helpers import CENTRES, SHAPE, SPACING_ZYX, PageClient, small_predictor, voxels
from small_networks import save_student

from utils.errors import InputError
from utils.files.nifti import write_nifti
from utils.prediction.session import PredictorOptions
from utils.prompts.kinds import Click
from utils.serving import notebook, show
from utils.serving.scan import scan_of_array
from utils.volumes.geometry import affine_from_spacing

#: What browsers do in frames of other sites where the user has set them so.
NO_STORAGE = """for (const name of ["localStorage", "sessionStorage"]) {
    const get = () => { throw new DOMException("denied", "SecurityError"); };
    Object.defineProperty(window, name, { get });
}"""
NOTEBOOK = "http://localhost:8899"
AFFINE = affine_from_spacing(np.array(SPACING_ZYX[::-1]))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("network") / "student.pth")


@pytest.fixture(scope="module")
def view(student, tmp_path_factory):
    """A view of an array, whose server all tests of this file share."""
    folder = tmp_path_factory.mktemp("saved")
    words = {"spacing_zyx": SPACING_ZYX, "device": "cpu", "save_dir": folder}
    with show(voxels(), student, notebook=NOTEBOOK, **words) as view:
        yield view


@pytest.fixture
def client(view):
    """What the page in the frame sends: all below the frame's address."""
    with httpx.Client(base_url=view.url, timeout=120) as client:
        page = PageClient(client)
        page.send("POST", "clear", {"target": None})
        yield page


@contextmanager
def framing_page(folder):
    """Serve a folder's files on a port of their own, as Jupyter does; yield its origin."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def expected(prompts):
    """The masks of predict.py's predictor for the prompts of targets."""
    scan = scan_of_array(voxels(), SPACING_ZYX, "image.nii.gz")
    predictor = small_predictor(PredictorOptions())
    predictor.set_image(scan.image, affine=scan.volume.affine, hounsfield=scan.hounsfield)
    for target, given in prompts.items():
        for prompt in given:
            predictor.add(prompt, target=target)
    return predictor.segmentation()


def test_a_click_on_the_page_is_a_mask_in_the_notebook(view, client):
    client.click(CENTRES[0])
    client.click((2, 2, 25), positive=False)
    client.send("POST", "targets", {"name": "second"})
    state = client.click(CENTRES[1], target=2)
    prompts = {1: [Click(CENTRES[0], True), Click((2, 2, 25), False)], 2: [Click(CENTRES[1], True)]}
    labels = expected(prompts)
    assert np.count_nonzero(labels)
    mask = view.mask()
    assert (mask.shape, mask.dtype) == (SHAPE, np.uint8)
    np.testing.assert_array_equal(mask, labels)
    np.testing.assert_array_equal(view.mask(2), labels == 2)
    assert view.mask(2).dtype == bool
    assert view.targets() == state["targets"]
    assert [target["name"] for target in view.prompts()["targets"]] == ["target 1", "second"]
    assert view.prompts()["targets"][1]["points"] == [{"at": list(CENTRES[1]), "positive": True}]
    mask[:] = 7  # a copy
    np.testing.assert_array_equal(view.mask(), labels)


def test_all_frames_of_a_view_show_one_session_that_no_frame_ends(view, client):
    client.click(CENTRES[0])
    other = PageClient(client.client)
    assert other.state["session"] == client.state["session"]
    assert other.state["targets"] == client.state["targets"]
    assert client.client.delete(client.path).status_code == 204
    assert view.mask().any()


def test_an_unheard_view_stays_open(view, client, monkeypatch):
    client.click(CENTRES[0])
    registry = view._server._context.registry
    monkeypatch.setattr(registry, "_clock", lambda: 1e12)
    registry.close_unused()
    assert view.mask().any()


def test_the_notebook_alone_may_frame_the_page(view):
    answer = httpx.get(view.url)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert f"frame-ancestors {NOTEBOOK}" in [part.strip() for part in policy.split(";")]
    assert "x-frame-options" not in answer.headers
    assert "set-cookie" not in answer.headers  # a frame of another site would not send it back


@pytest.mark.parametrize("path", ["", "api/status", "static/app.js", "info/", "capabilities"])
def test_nothing_is_answered_without_the_secret(view, path):
    address = view.url.partition("/t/")[0]
    answer = httpx.get(f"{address}/{path}")
    assert answer.status_code == 401
    wrong = view.url[:-2] + ("A/" if view.url[-2] != "A" else "B/")
    assert httpx.get(wrong + path).status_code == 401


def test_another_page_cannot_send_requests_with_the_secret(view):
    for headers in ({"Origin": NOTEBOOK}, {"Sec-Fetch-Site": "same-site"}):
        answer = httpx.post(f"{view.url}api/sessions", json={}, headers=headers)
        assert answer.status_code == 403


def test_the_cell_shows_a_frame_with_the_page(view):
    text = view._repr_html_()
    assert re.search(r'<iframe src="([^"]+)"', text)[1] == view.url
    assert re.search(r'height="(\d+)"', text)[1] == str(view.height)
    assert NOTEBOOK in text
    assert view.url.startswith("http://127.0.0.1:")


def test_a_file_is_shown_on_its_own_grid_and_close_ends_the_server(student, tmp_path):
    write_nifti(tmp_path / "scan.nii.gz", voxels(), AFFINE)
    view = show(tmp_path / "scan.nii.gz", student, device="cpu", save_dir=tmp_path / "saved")
    with httpx.Client(base_url=view.url, timeout=120) as client:
        page = PageClient(client)
        assert page.state["image"]["name"] == "scan.nii.gz"
        np.testing.assert_allclose(page.state["image"]["affine"], AFFINE, atol=1e-6)
        page.click(CENTRES[0])
    mask = view.mask()
    assert mask.shape == SHAPE
    assert mask.any()
    assert repr(view) == "View(open)"
    view.close()
    assert repr(view) == "View(closed)"
    assert "<iframe" not in view._repr_html_()
    with pytest.raises(InputError, match="has ended"):
        view.mask()
    with pytest.raises(httpx.ConnectError):
        httpx.get(view.url)
    view.close()  # again does nothing
    (saved,) = (tmp_path / "saved" / "autosave").iterdir()
    assert json.loads(saved.read_text())["targets"][0]["prompts"]


def test_a_process_with_a_view_ends_by_itself(student, tmp_path):
    code = (
        "import sys, numpy as np; from utils.serving import show\n"
        "view = show(np.ones((8, 8, 8)), sys.argv[1], spacing_zyx=(1, 1, 1), device='cpu',"
        " save_dir=sys.argv[2])\n"
        "print(view.mask().shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(student), str(tmp_path / "saved")],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(8, 8, 8)\n"
    assert "Traceback" not in done.stderr


def test_the_import_alone_loads_no_network_code():
    code = "import sys, utils.serving.defaults; print({'torch', 'starlette'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "set()\n"


CUBE = np.ones((8, 8, 8), np.int16)


@pytest.mark.parametrize(
    ("image", "words", "said"),
    [
        (CUBE, {}, "found spacing_zyx None with an array"),
        (CUBE, {"spacing_zyx": (1, 1)}, r"found spacing_zyx \(1, 1\)"),
        (CUBE, {"spacing_zyx": (1, 0, 1)}, r"found spacing_zyx \(1, 0, 1\)"),
        (CUBE, {"spacing_zyx": (1, np.nan, 1)}, "mm between voxels"),
        (CUBE[0], {"spacing_zyx": (1, 1, 1)}, r"found shape \(8, 8\)"),
        (CUBE[None], {"spacing_zyx": (1, 1, 1)}, r"found shape \(1, 8, 8, 8\)"),
        (CUBE[:0], {"spacing_zyx": (1, 1, 1)}, r"found shape \(0, 8, 8\)"),
        (CUBE.astype(complex), {"spacing_zyx": (1, 1, 1)}, "dtype complex128"),
        (CUBE * np.nan, {"spacing_zyx": (1, 1, 1)}, "the image"),
        (CUBE, {"spacing_zyx": (1, 1, 1), "modality": "CT"}, "modality: found 'CT'"),
        ("none.nii.gz", {}, "none.nii.gz"),
        ("none.nii.gz", {"spacing_zyx": (1, 1, 1)}, "leave it out"),
        (CUBE, {"spacing_zyx": (1, 1, 1), "notebook": "localhost:8888"}, "notebook: found"),
    ],
)
def test_what_cannot_be_shown_is_said_before_a_server_starts(student, image, words, said):
    with pytest.raises(InputError, match=said):
        show(image, student, **words)


def test_a_target_that_is_not_there_is_said(view):
    with pytest.raises(InputError, match=r"found target 9, expected one of \[1"):
        view.mask(9)


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("http://localhost:8888/lab/tree/a.ipynb?x=1#y", "http://localhost:8888"),
        ("https://Hub.Example.org/user/anna", "https://hub.example.org"),
    ],
)
def test_the_origin_of_a_notebooks_address_is_found(address, origin):
    assert notebook.origin_of(address) == origin


@pytest.mark.parametrize(
    "address",
    ["", "*", "file:///a", "http://a b", "http://a;script-src *", "http://u:p@a", "http://*:8888",
     "http://a\n", "javascript:alert(1)", "http://"],
)  # fmt: skip
def test_no_text_of_an_address_changes_the_policy(address):
    if address == "http://a\n":  # the line's end goes
        assert notebook.origin_of(address) == "http://a"
        return
    with pytest.raises(InputError, match="address bar"):
        notebook.origin_of(address)


@pytest.mark.parametrize("words", [("-f", "{}"), ("--f={}",)])
def test_the_jupyter_server_that_started_the_kernel_is_found(tmp_path, monkeypatch, words):
    file = tmp_path / "kernel-1a.json"
    monkeypatch.setattr(sys, "argv", ["launcher.py", *(word.format(file) for word in words)])
    monkeypatch.setenv("JPY_PARENT_PID", "77")
    usual = ["http://localhost:8888", "http://127.0.0.1:8888"]
    assert notebook.jupyter_origins() == usual
    (tmp_path / "jpserver-77.json").write_text('{"port": 8890, "secure": true, "token": "x"}')
    assert notebook.jupyter_origins() == ["https://localhost:8890", "https://127.0.0.1:8890"]
    (tmp_path / "jpserver-77.json").write_text('{"port": "a"}')
    assert notebook.jupyter_origins() == usual


def test_a_page_of_another_port_shows_the_view_and_a_click_reaches_the_notebook(student, tmp_path):
    chromium = require_browser()
    page = tmp_path / "notebook.html"
    with framing_page(tmp_path) as address, browser(chromium, tmp_path) as tab:
        tab.add_init_script(NO_STORAGE)
        words = {"spacing_zyx": SPACING_ZYX, "device": "cpu", "save_dir": tmp_path / "saved"}
        with show(voxels(), student, notebook=address, **words) as view:
            page.write_text(f"<!doctype html><link rel=icon href=data:,>{view._repr_html_()}")
            user = User(tab, f"{address}/notebook.html", frame=view.url)
            user.click(CENTRES[0])
            shown = np.array(user.labels(), np.uint8).reshape(SHAPE)
            assert shown.any()
            user.page.click("#theme")  # which cannot be remembered
            np.testing.assert_array_equal(shown, view.mask())
            assert user.faults == []
        with show(voxels(), student, notebook="http://localhost:1", **words) as view:
            page.write_text(f"<!doctype html><link rel=icon href=data:,>{view._repr_html_()}")
            tab.goto(f"{address}/notebook.html")
            assert not any(frame.url == view.url for frame in tab.frames)
