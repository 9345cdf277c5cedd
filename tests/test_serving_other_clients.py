"""Clients of other protocols, by the requests that they send: their masks are the predictor's."""

import base64
import gzip
import io
import json

import numpy as np
import pytest
from serving_helpers import (
    CENTRES,
    SHAPE,
    client_of,
    open_session,
    plain_masks,
    small_context,
    voxels,
)
from small_cases import ball

from utils.files.images import read_image
from utils.files.nifti import write_nifti
from utils.prompts.kinds import BoxPrompt, Click, MaskPrompt
from utils.serving import forms
from utils.serving.drawings import checked_drawing
from utils.serving.scan import scan_of_array, scan_of_volume
from utils.volumes.geometry import affine_from_spacing
from utils.volumes.grid import Volume

INSIDE, OUTSIDE = Click(CENTRES[0], True), Click((2, 2, 25), False)
AFFINE = affine_from_spacing(np.array([1.2, 1.1, 1.0]))
CURVE = np.zeros(SHAPE, np.uint8)  # drawn on one slice
CURVE[6, 6:9, 2:27] = 1


@pytest.fixture
def client(tmp_path):
    with client_of(small_context(tmp_path)) as client:
        yield client


def npy(array, zipped=False):
    file = io.BytesIO()
    np.save(file, array)
    return gzip.compress(file.getvalue()) if zipped else file.getvalue()


class Slicer:
    """What the plug-in 0.3.2 sends and does."""

    def __init__(self, client):
        self.client = client
        self.expected = None

    def upload(self, array):
        answer = self.client.post("/upload_image", files={"file": ("volume.npy", npy(array))})
        assert answer.json() == {"status": "ok"}
        self.scan = scan_of_array(array, (1.0, 1.0, 1.0), "image.nii.gz")

    def file(self, path, mask, **fields):
        """Send a gzipped mask under a header that is not true."""
        files = {"file": ("volume.npy.gz", npy(mask.astype(np.uint8), zipped=True))}
        headers = {"Content-Encoding": "gzip"}
        return self.client.post(path, files=files, data=fields, headers=headers)

    def prompt(self, path, **body):
        return self.client.post(path, json=body)

    def mask(self, answer):
        assert answer.headers["content-encoding"] == "gzip"
        bits = np.frombuffer(answer.content, np.uint8)  # the client has inflated it
        return np.unpackbits(bits, count=np.prod(SHAPE)).reshape(SHAPE)

    def check(self, answer, *prompts):
        np.testing.assert_array_equal(self.mask(answer), plain_masks({1: prompts}, self.scan))


def test_slicers_old_plugin_is_served_a_whole_session(client):
    slicer = Slicer(client)
    point = {"voxel_coord": list(CENTRES[0]), "positive_click": True}
    answer = slicer.prompt("/add_point_interaction", **point)
    assert answer.status_code == 200
    assert answer.json() == {"status": "error", "message": "No image uploaded"}
    slicer.upload(voxels())
    assert slicer.file("/upload_segment", np.zeros(SHAPE)).json() == {"status": "ok"}
    slicer.check(slicer.prompt("/add_point_interaction", **point), INSIDE)
    corners = {"outer_point_one": [17, 12, 40], "outer_point_two": [9, 20, 16]}  # one lies outside
    answer = slicer.prompt("/add_bbox_interaction", **corners, positive_click=True)
    slicer.check(answer, INSIDE, BoxPrompt((9.0, 12.0, 16.0), (18.0, 21.0, 28.0)))
    given = ball(SHAPE, CENTRES[1], 4)
    assert slicer.file("/upload_segment", given).json() == {"status": "ok"}
    answer = slicer.prompt("/add_point_interaction", voxel_coord=[2, 2, 25], positive_click=False)
    slicer.check(answer, MaskPrompt(given), OUTSIDE)


def test_a_form_is_parsed_in_parts(client, monkeypatch):
    monkeypatch.setattr(forms, "CHUNK", 1000)
    slicer = Slicer(client)
    slicer.upload(voxels())  # 13 parts
    point = {"voxel_coord": list(CENTRES[0]), "positive_click": True}
    slicer.check(slicer.prompt("/add_point_interaction", **point), INSIDE)


def after_drawing(scan, *earlier, **kind):
    """The labels of a session that gets prompts, and then the curve as a drawing."""
    session = open_session(scan)
    for prompt in earlier:
        session.add(1, prompt)
    before = session.labels.copy()
    session.draw(1, checked_drawing(CURVE, None, SHAPE, **kind))
    assert (session.labels != before).any()
    return session.labels


@pytest.mark.parametrize("kind", ["scribble", "lasso"])
@pytest.mark.parametrize("word", ["True", "False"])
def test_slicers_old_plugin_draws(client, kind, word):
    slicer = Slicer(client)
    path = f"/add_{kind}_interaction"
    first = slicer.file(path, CURVE, positive_click=word)
    assert first.json() == {"status": "error", "message": "No image uploaded"}
    slicer.upload(voxels())
    slicer.prompt("/add_point_interaction", voxel_coord=list(CENTRES[1]), positive_click=True)
    answer = slicer.file(path, CURVE, positive_click=word)
    click = Click(CENTRES[1], True)
    how = {"is_foreground": word == "True", "is_lasso": kind == "lasso"}
    expected = after_drawing(slicer.scan, click, **how)
    np.testing.assert_array_equal(slicer.mask(answer), expected)


def test_slicers_old_plugin_is_told_what_is_wrong_and_goes_on(client):
    slicer = Slicer(client)
    slicer.upload(voxels())
    answer = slicer.prompt("/add_point_interaction", voxel_coord=[99, 0, 0], positive_click=True)
    assert answer.status_code == 200
    assert "is not a voxel of the image" in answer.json()["message"]
    answer = slicer.file("/add_scribble_interaction", np.zeros(SHAPE), positive_click="True")
    assert "holds 0 voxels" in answer.json()["message"]
    answer = slicer.file("/add_lasso_interaction", CURVE[1:], positive_click="True")
    assert "has shape (19, 24, 28)" in answer.json()["message"]
    assert slicer.prompt("/add_point_interaction", voxel_coord="x").status_code == 400
    point = {"voxel_coord": list(CENTRES[0]), "positive_click": True}
    slicer.check(slicer.prompt("/add_point_interaction", **point), INSIDE)


OBJECTS = np.array([[[{}]]], object)
HOSTILE_ARRAYS = {
    "pickle": npy(OBJECTS),
    "no-array": b"PK\3\4",
    "two-axes": npy(np.zeros((3, 3))),
    "no-voxel": npy(np.zeros((0, 3, 3))),
    "complex": npy(np.zeros((2, 2, 2), complex)),
    "cut-off": npy(np.zeros((9, 9, 9)))[:-8],
    "too-long": npy(np.zeros((9, 9, 9))) + b"x",
    "declares-more": npy(np.zeros((9, 9, 9))).replace(b"(9, 9, 9)", b"(9, 9,99)"),
    "no-literal": npy(np.zeros((9, 9, 9))).replace(b"(9, 9, 9)", b"(9, 9, 9,"),
    "header-bomb": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    "not-finite": npy(np.full((2, 2, 2), np.nan)),
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_hostile_arrays_are_refused(client, name):
    files = {"file": ("volume.npy", HOSTILE_ARRAYS[name])}
    assert client.post("/upload_image", files=files).status_code in (400, 413)
    zipped = {"file": ("volume.npy.gz", gzip.compress(HOSTILE_ARRAYS[name]))}
    assert client.post("/upload_segment", files=zipped).status_code in (200, 400, 413)


def test_a_bomb_in_a_form_is_inflated_no_further_than_an_image_may_be(client):
    Slicer(client).upload(voxels())
    bomb = gzip.compress(bytes(2**23))
    answer = client.post("/upload_segment", files={"file": ("volume.npy.gz", bomb)})
    assert answer.status_code == 413


LPS_DIRECTION = [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]  # turned about z


def itk_send(client, path, array, **changes):
    metadata = {
        "dimensions": list(array.shape[::-1]), "spacing": [1.2, 1.1, 1.0], "origin": [5, -6, 7],
        "direction": LPS_DIRECTION, "components_per_pixel": 1, "component_type": "float32",
    }  # fmt: skip
    content = gzip.compress(array.astype("<f4").tobytes())
    return client.post(
        path,
        files={"file": ("image.gz", content, "application/gzip")},
        data={"metadata": json.dumps(metadata | changes)},
    )


def itk_upload(client, session, array, **changes):
    path = f"/v2/upload_raw/{session}?filename=upload.nii.gz"
    return itk_send(client, path, array, **changes)


def itk_scan():
    """The scan that the server makes of `itk_upload`'s voxels."""
    lps = np.array([[0, -1.1, 0, 5], [1.2, 0, 0, -6], [0, 0, 1, 7], [0, 0, 0, 1]])
    volume = Volume(voxels().astype(np.float32), np.diag([-1, -1, 1, 1]) @ lps)
    return scan_of_volume(volume, "image.nii.gz")


def itk_mask(answer):
    content = gzip.decompress(base64.b64decode(answer.json()["result"]))
    return np.frombuffer(content, np.int8).reshape(SHAPE)


def test_itksnap_is_served_a_whole_session(client):
    assert client.get("/status").json() == {"status": "ok", "version": "0.1.6"}
    (model,) = client.get("/v2/models").json()["models"]
    session = client.get(f"/v2/start_session/{model['id']}").json()["session_id"]
    assert itk_upload(client, session, voxels()).json()["message"]
    scan = itk_scan()

    def check(answer, *prompts):
        np.testing.assert_array_equal(itk_mask(answer), plain_masks({1: prompts}, scan))

    z, y, x = CENTRES[0]
    points = f"point={x}&point={y}&point={z}&foreground=true"
    check(client.get(f"/v2/process_point_interaction/{session}?{points}"), INSIDE)
    old = f"/process_point_interaction/{session}?x=25&y=2&z=2&foreground=false"
    check(client.get(old), INSIDE, OUTSIDE)
    assert client.get(f"/v2/reset_interactions/{session}").json() == {"status": "success"}
    check(client.get(f"/v2/process_point_interaction/{session}?{points}"), INSIDE)
    assert client.get(f"/end_session/{session}").status_code == 200
    assert client.get(f"/v2/process_point_interaction/{session}?{points}").status_code == 404


@pytest.mark.parametrize("kind", ["scribble", "lasso"])
@pytest.mark.parametrize("front", ["", "/v2"])
def test_itksnap_draws(client, kind, front):
    assert kind in client.get("/v2/models").json()["models"][0]["interactions"]
    session = client.get("/start_session").json()["session_id"]
    itk_upload(client, session, voxels())
    path = f"{front}/process_{kind}_interaction/{session}?foreground="
    for word, is_foreground in (("true", True), ("false", False)):
        z, y, x = CENTRES[1]
        client.get(f"/process_point_interaction/{session}?x={x}&y={y}&z={z}&foreground=true")
        mask = itk_mask(itk_send(client, path + word, CURVE))
        how = {"is_foreground": is_foreground, "is_lasso": kind == "lasso"}
        expected = after_drawing(itk_scan(), Click(CENTRES[1], True), **how)
        np.testing.assert_array_equal(mask, expected)
        client.get(f"/reset_interactions/{session}")


def test_itksnaps_drawing_that_cannot_be_used_changes_nothing(client):
    session = client.get("/start_session").json()["session_id"]
    path = f"/process_scribble_interaction/{session}?foreground="
    assert itk_send(client, path + "true", CURVE).status_code == 409  # no image
    itk_upload(client, session, voxels())
    assert itk_send(client, path + "maybe", CURVE).status_code == 400
    assert itk_send(client, path + "true", np.zeros(SHAPE)).status_code == 400
    assert itk_send(client, path + "true", CURVE[1:]).status_code == 400
    assert itk_send(client, path.replace("scribble", "box") + "true", CURVE).status_code == 400
    z, y, x = CENTRES[0]
    answer = client.get(f"/process_point_interaction/{session}?x={x}&y={y}&z={z}&foreground=true")
    np.testing.assert_array_equal(itk_mask(answer), plain_masks({1: [INSIDE]}, itk_scan()))


@pytest.mark.parametrize(
    "changes",
    [
        {"dimensions": [28, 24, 21]}, {"dimensions": [28, 24, -20]}, {"dimensions": [9**9, 9, 9]},
        {"dimensions": [10**4000] * 3},
        {"spacing": [0, 1, 1]}, {"spacing": [1e400, 1, 1]}, {"direction": [1, 0, 0]},
        {"components_per_pixel": 3}, {"component_type": "int64"},
    ],
    ids=[
        "more", "negative", "huge", "endless", "spacing", "infinite", "direction", "components",
        "type",
    ],
)  # fmt: skip
def test_itksnaps_image_of_a_wrong_grid_is_refused(client, changes):
    session = client.get("/start_session").json()["session_id"]
    assert itk_upload(client, session, voxels(), **changes).status_code in (400, 413)
    answer = client.get(f"/process_point_interaction/{session}?x=1&y=1&z=1&foreground=true")
    assert answer.status_code == 409  # no image


def test_monai_labels_client_is_served_a_whole_session(client, tmp_path):
    assert client.get("/auth/").json() == {"enabled": False}
    ((model, facts),) = client.get("/info/").json()["models"].items()
    assert facts["type"] == "deepgrow"
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, voxels(), AFFINE)
    answer = client.put("/session/", files={"files": (path.name, path.read_bytes())})
    session = answer.json()["session_id"]
    assert client.get(f"/session/{session}").json()
    assert client.get("/session/none").json() == {}
    scan = scan_of_volume(read_image(path), path.name)

    def check(params, *prompts):
        answer = client.post(
            f"/infer/{model}?image={session}&session_id={session}&output=image",
            files={"params": (None, json.dumps(params))},
        )
        (tmp_path / "mask.nrrd").write_bytes(answer.content)
        mask = read_image(tmp_path / "mask.nrrd")
        np.testing.assert_array_equal(mask.array, plain_masks({1: prompts}, scan))
        np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-6)

    inside, outside = list(CENTRES[0][::-1]), [25, 2, 2]
    check({"foreground": [inside], "background": [], "result_extension": ".nrrd"}, INSIDE)
    check({"foreground": [inside], "background": [outside]}, INSIDE, OUTSIDE)
    check({"foreground": [inside], "background": []}, INSIDE)  # one point fewer is an undo
    both = client.post(f"/infer/{model}?image={session}", files={"params": (None, json.dumps({}))})
    assert both.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'filename="res.nrrd"' in both.content
    assert client.delete(f"/session/{session}").status_code == 200


def test_monai_labels_request_chooses_what_it_is_answered(client, tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, voxels(), AFFINE)
    file = {"file": (path.name, path.read_bytes())}
    session = client.put("/session/", files={"files": file["file"]}).json()["session_id"]

    def infer(query, files=None, **params):
        params = {"foreground": [list(CENTRES[0][::-1])], "label": "liver"} | params
        files = {"params": (None, json.dumps(params))} | (files or {})
        return client.post(f"/infer/fastsam3d?{query}", files=files)

    answer = infer(f"image={session}&output=json")
    assert answer.json() == {"label_names": {"liver": 1}}
    answer = infer(f"image={session}", result_extension=".nii.gz")
    assert b'filename="res.nii.gz"' in answer.content
    answer = infer(f"image={session}&output=image", result_extension=".nii.gz")
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    expected = plain_masks({1: [INSIDE]}, scan_of_volume(read_image(path), path.name))
    np.testing.assert_array_equal(read_image(tmp_path / "mask.nii.gz").array, expected)
    for query, params in (("output=dicom_seg", {}), ("", {"result_extension": ".seg.nrrd"})):
        answer = infer(f"image={session}&{query}", **params)
        assert answer.status_code == 400, answer.text
    before = client.get("/api/status").json()["sessions"]["open"]
    for query in ("output=image", "output=image&image=scan", "output=image&image="):
        answer = infer(query, file)  # the image comes with the request
        (tmp_path / "mask.nrrd").write_bytes(answer.content)
        np.testing.assert_array_equal(read_image(tmp_path / "mask.nrrd").array, expected)
    assert infer("output=image").status_code == 404  # neither a name nor a file
    assert client.get("/api/status").json()["sessions"]["open"] == before


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ("{", 400), ("[]", 400), ('{"foreground": [[1, 2]]}', 400),
        ('{"foreground": [[99, 99, 99]]}', 400), ('{"foreground": [[1e300, 0, 0]]}', 400),
        ('{"roi": [5, 5, 5, 5, 5, 5]}', 400), ('{"foreground": [["a", 1, 1]]}', 400),
    ],
)  # fmt: skip
def test_monai_labels_wrong_params_are_refused(client, tmp_path, params, status):
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, voxels(), AFFINE)
    answer = client.put("/session/", files={"files": (path.name, path.read_bytes())})
    session = answer.json()["session_id"]
    answer = client.post(f"/infer/fastsam3d?image={session}", files={"params": (None, params)})
    assert answer.status_code == status, answer.text


def test_hostile_forms_are_refused(client):
    for path, method in (("/upload_image", "POST"), ("/session/", "PUT")):
        for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "text/plain"):
            for body in (
                b"",
                b"--x\r\n",
                b"--x--",
                b"\xff" * 100,
                b"--x\r\nContent-Disposition: x",
            ):
                answer = client.request(method, path, content=body, headers={"Content-Type": kind})
                assert answer.status_code == 400, (path, kind, body)
        files = [(f"f{number}", (f"{number}.nii", b"x")) for number in range(50)]
        assert client.request(method, path, files=files).status_code == 400
        files = {"files": ("../../etc/passwd", b"x"), "file": ("../../etc/passwd", b"x")}
        assert client.request(method, path, files=files).status_code == 400
