"""Nothing on this machine is read, written or run for a stranger, another page or a hostile upload.

After all refusals of a test the server answers the next click right.
"""

import asyncio
import gzip
import json
import os
import struct
import subprocess
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from serving_helpers import (
    CENTRES,
    SHAPE,
    PageClient,
    client_of,
    plain_masks,
    small_app,
    small_context,
    small_scan,
    voxels,
)
from starlette.requests import Request
from starlette.testclient import TestClient

from utils.errors import InputError
from utils.files.images import read_image
from utils.files.nifti import write_nifti
from utils.prompts.kinds import Click
from utils.serving import uploads
from utils.serving.private_folders import private_folder, remove_abandoned_folders
from utils.serving.refusals import Refusal
from utils.serving.server import Address
from utils.volumes.geometry import affine_from_spacing

TOKEN = "correct-horse-battery"
AFFINE = affine_from_spacing(np.array([1.2, 1.1, 1.0]))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    context = small_context(tmp_path_factory.mktemp("server"), small_scan())
    with client_of(context) as client:
        page = PageClient(client)
        page.session = context.registry.get(page.state["session"], "page").session
        yield page


def check_next_click(page):
    """The session answers a click as a fresh predictor does."""
    page.send("POST", "clear", {"target": None})
    page.labels = np.zeros(SHAPE, np.uint8)
    page.click(CENTRES[0])
    expected = plain_masks({1: [Click(CENTRES[0], True)]}, page.session.scan)
    np.testing.assert_array_equal(page.labels, expected)


def refused(answer, status, code):
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert "nosniff" in answer.headers["x-content-type-options"]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "local host", "[::1", "a:b"],
)
def test_a_request_for_another_host_is_refused(page, host):
    for path in ("/", "/api/status", "/static/app.js", "/healthz"):
        refused(page.client.get(path, headers={"Host": host}), 403, "host")


@pytest.mark.parametrize("host", ["localhost:1527", "127.0.0.1", "[::1]:1527", "192.168.7.9:80"])
def test_a_request_for_this_machine_is_answered(page, host):
    assert page.client.get("/api/status", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "http://127.0.0.1:1527.evil.example"},
        {"Origin": "file://127.0.0.1:1527"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "Cross-Site"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
    ],
    ids=lambda headers: "-".join(headers.values()).replace("/", "_"),
)
def test_another_page_can_reach_nothing_but_the_page(page, headers):
    for method, path in (
        ("POST", "/api/sessions"), ("GET", "/api/status"), ("GET", "/static/app.js"),
        ("POST", "/claim"), ("POST", f"{page.path}/undo"), ("GET", f"{page.path}/image.nii"),
    ):  # fmt: skip
        answer = page.client.request(method, path, headers=headers)
        refused(answer, 403, "origin")
        assert "access-control-allow-origin" not in answer.headers
    assert page.client.get("/", headers=headers).status_code == 200


def test_a_page_that_was_allowed_can_use_the_server_and_no_other_can(tmp_path):
    context, viewer = small_context(tmp_path, small_scan()), {"Origin": "https://viewer.example"}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with client_of(context, token=TOKEN, origins=["https://viewer.example"]) as client:
        asked = {"Access-Control-Request-Method": "PATCH", "Sec-Fetch-Site": "cross-site"}
        answer = client.options("/api/sessions/x/targets/1", headers=viewer | asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://viewer.example"
        assert "PATCH" in answer.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in answer.headers
        answer = client.post("/api/sessions", headers=viewer | bearer, json={})
        assert answer.status_code == 201
        assert answer.headers["access-control-allow-origin"] == "https://viewer.example"
        answer = client.post("/api/sessions", headers=viewer, json={})
        refused(answer, 401, "token")  # which the page can read
        assert answer.headers["access-control-allow-origin"] == "https://viewer.example"
        private = {"Access-Control-Request-Private-Network": "true"}
        answer = client.options("/api/status", headers=viewer | asked | private)
        assert answer.headers["access-control-allow-private-network"] == "true"
        for other in ("https://viewer.example.evil.example", "http://viewer.example", "null"):
            foreign = {"Origin": other}
            asking = client.options("/api/status", headers=foreign | asked)
            assert asking.status_code == 400
            answer = client.get("/api/status", headers=foreign | bearer)
            refused(answer, 403, "origin")
            for each in (asking, answer):
                assert "access-control-allow-origin" not in each.headers
        two = [("Origin", "https://viewer.example"), ("Origin", "https://evil.example")]
        refused(client.get("/api/status", headers=[*two, *bearer.items()]), 403, "origin")


def test_the_own_page_and_programs_are_answered(page):
    for headers in (
        {"Origin": "http://127.0.0.1:1527", "Sec-Fetch-Site": "same-origin"}, {},
        {"Sec-Fetch-Site": "none"},
    ):  # fmt: skip
        assert page.client.get("/api/status", headers=headers).status_code == 200


def test_no_answer_lacks_the_headers_that_guard_the_page(page):
    for path in ("/", "/static/none.js", "/api/status", "/nowhere", "/api/sessions/x"):
        headers = page.client.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


@pytest.fixture
def with_token(tmp_path):
    context = small_context(tmp_path, small_scan())
    with client_of(context, token=TOKEN) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong-horse-battery"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": f"fastsam3d_1527={TOKEN[:-1]}"},
        {"Cookie": f"other={TOKEN}"},
        {"Authorization": "Bearer \u00e9".encode()},
    ],
    ids=["none", "wrong", "longer", "scheme", "cookie", "other-cookie", "not-ascii"],
)
def test_without_the_token_nothing_but_its_form_is_shown(with_token, headers):
    refused(with_token.get("/api/status", headers=headers), 401, "token")
    refused(with_token.post("/api/sessions", headers=headers, json={}), 401, "token")
    refused(with_token.get("/t/wrong-horse-battery/api/status", headers=headers), 401, "token")
    refused(with_token.get("/api/status", params={"token": TOKEN}, headers=headers), 401, "token")
    page = with_token.get(f"/?{'a=1&' * 50}token={TOKEN}", headers=headers)
    assert page.status_code == 401
    page = with_token.get("/", headers=headers)
    assert page.status_code == 401
    assert "token" in page.text
    assert TOKEN not in page.text


def test_each_carrier_of_the_token_is_taken(with_token):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert with_token.get("/api/status", headers=headers).status_code == 200
    assert with_token.get(f"/t/{TOKEN}/api/status").status_code == 200
    assert with_token.get("/api/status", auth=("anyone", TOKEN)).status_code == 200
    answer = with_token.get(f"/t/{TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, f"/t/{TOKEN}/")
    assert with_token.get("/t/wrong", follow_redirects=False).status_code == 401
    answer = with_token.get("/", params={"token": TOKEN})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert with_token.get("/api/status").status_code == 200  # the client keeps cookies
    assert "set-cookie" not in with_token.get("/api/status").headers


def test_an_address_that_others_can_reach_needs_a_token():
    for host in ("0.0.0.0", "::", "192.168.1.5", "myhost"):
        with pytest.raises(InputError, match="--token"):
            Address(host, 1527).require_safe()
        Address(host, 1527, TOKEN).require_safe()
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        Address(host, 1527).require_safe()


def test_a_name_is_allowed_that_was_given(tmp_path):
    context = small_context(tmp_path)
    for names, status in (((), 403), (("scanner.example",), 200)):
        app = small_app(context, names=names)
        client = TestClient(app, base_url="http://scanner.example:1527")
        assert client.get("/api/status").status_code == status


@pytest.mark.parametrize(
    "path",
    [
        "/static/../session.py",
        "/static/%2e%2e/session.py",
        "/static/..%2f..%2fserve.py",
        "/static//etc/passwd",
        "/static/%00",
        "/static/index.html/",
        "/static/.hidden",
        "/static/vendor/../../session.py",
        "/static/C:/Windows/win.ini",
    ],
)
def test_no_path_leads_out_of_the_pages_folder(page, path):
    answer = page.client.get(path)
    assert answer.status_code == 404, answer.text
    assert "import" not in answer.text


def image_bytes(array=None, **header):
    """A NIfTI file, not zipped, some of whose header's fields are changed."""
    made = nib.Nifti1Image((voxels() if array is None else array).T, AFFINE)
    content = bytearray(made.to_bytes())
    for name, (offset, packed) in header.items():
        assert name
        content[offset : offset + len(packed)] = packed
    return bytes(content)


def nrrd(fields=(), data=b"\0" * 8):
    lines = ["NRRD0004", "type: uint8", "dimension: 3", "sizes: 2 2 2", "encoding: raw", *fields]
    return "\n".join(lines).encode() + b"\n\n" + data


def meta(*fields, data=b"\0" * 8, last="ElementDataFile = LOCAL"):
    lines = ["ObjectType = Image", "NDims = 3", "DimSize = 2 2 2", "ElementType = MET_UCHAR"]
    return "\n".join([*lines, *fields, last]).encode() + b"\n" + data


HUGE = (40, struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1))
NEGATIVE = (40, struct.pack("<8h", 3, -5, 9, 9, 1, 1, 1, 1))
FOUR = (40, struct.pack("<8h", 4, 20, 24, 14, 2, 1, 1, 1))
OBJECTS = (70, struct.pack("<hh", 1, 1))
HOSTILE = {
    "no-image": (b"not an image", ".nii"),
    "empty": (b"", ".nii.gz"),
    "a-gzip-of-nothing": (gzip.compress(b""), ".nii.gz"),
    "damaged-gzip": (gzip.compress(image_bytes())[:-200], ".nii.gz"),
    "more-voxels-than-allowed": (image_bytes(dim=HUGE), ".nii"),
    "negative-size": (image_bytes(dim=NEGATIVE), ".nii"),
    "four-axes": (image_bytes(dim=FOUR), ".nii"),
    "bits": (image_bytes(dtype=OBJECTS), ".nii"),
    "far-offset": (image_bytes(offset=(108, struct.pack("<f", 3e38))), ".nii"),
    "a-bomb-behind-a-far-offset": (
        gzip.compress(image_bytes(offset=(108, struct.pack("<f", 1e9))) + bytes(2**24)),
        ".nii.gz",
    ),
    "offset-not-a-number": (image_bytes(offset=(108, struct.pack("<f", np.nan))), ".nii"),
    "cut-off": (image_bytes()[:-100], ".nii"),
    "voxels-not-finite": (image_bytes(np.full(SHAPE, np.nan, np.float32)), ".nii"),
    "a-bomb": (gzip.compress(image_bytes() + bytes(2**24)), ".nii.gz"),
    "another-format-by-its-name": (image_bytes(), ".nrrd"),
    "nrrd-data-file": (nrrd(["data file: /etc/passwd"]), ".nrrd"),
    "nrrd-datafile": (nrrd(["datafile: /etc/passwd"]), ".nrrd"),
    "nrrd-list": (nrrd(["data file: LIST\n/etc/passwd"]), ".nrrd"),
    "nrrd-carriage-return": (nrrd(["# x\rdata file: /etc/passwd"]), ".nrrd"),
    "nrrd-blanks": (nrrd(["data  \t file: /etc/passwd"]), ".nrrd"),
    "nrrd-without-end": (nrrd()[:60], ".nrrd"),
    "nrrd-huge": (nrrd().replace(b"2 2 2", b"99999 99999 9999"), ".nrrd"),
    "nrrd-too-short": (nrrd(data=b"\0"), ".nrrd"),
    "meta-file": (meta(last="ElementDataFile = /etc/passwd"), ".mha"),
    "meta-tab": (meta(last="\tElementDataFile\t=\t/etc/passwd"), ".mha"),
    "meta-two": (meta("ElementDataFile = /etc/passwd"), ".mha"),
    "meta-comment": (meta("Comment = LOCAL", last="ElementDataFile = /etc/passwd"), ".mha"),
    "meta-header-size": (meta("HeaderSize = -1"), ".mha"),
    "meta-few-numbers": (meta("Offset = 1", "ElementDataFile = LOCAL", last="x"), ".mha"),
    "meta-no-numbers": (meta("Offset = x y z"), ".mha"),
    "meta-huge-axes": (meta().replace(b"NDims = 3", b"NDims = 99999"), ".mha"),
    "meta-axes-last": (meta("NDims = 3").replace(b"NDims = 3\n", b"", 1), ".mha"),
    "meta-no-word": (meta("Modality = MET_MOD_CT; x"), ".mha"),
    "meta-huge": (meta().replace(b"2 2 2", b"99999 99999 9999"), ".mha"),
    "meta-bomb": (meta("CompressedData = True", data=zlib.compress(bytes(2**24))), ".mha"),
    "header-too-long": (nrrd(["# " + "x" * 70000]), ".nrrd"),
}


#: Lines that the package for MetaImages takes for the name of a file, or that swallow the next one.
TRICKS = {
    "colon": "ElementDataFile: {}",
    "blank": "\x0bElementDataFile = {}",
    "carriage-return": "Comment = x\rElementDataFile = {}",
    "no-key": "Foo",
    "no-number": "Offset =",
    "long": "Comment = " + "x" * 600,
}


@pytest.mark.parametrize("name", TRICKS)
def test_no_line_of_a_meta_image_leads_to_another_file(page, tmp_path, name):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"SECRET78")
    data = f"ElementDataFile = {secret}\n".encode()
    content = meta(TRICKS[name].format(secret), data=data)
    state = page.send("POST", "image?name=a.mha", content=content)
    assert state["image"]["shape_zyx"] == [2, 2, 2]
    assert page.client.get(f"{page.path}/image.nii").content[-8:] == data[:8]


def test_a_meta_images_grid_and_modality_are_kept(page, tmp_path):
    turned = AFFINE @ np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, -9.5], [0, 0, 1, 7], [0, 0, 0, 1]])
    image = sitk.GetImageFromArray(voxels().astype(np.int16) - 900)
    lps = np.diag([-1, -1, 1, 1]) @ turned
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetMetaData("0008|0060", "CT")
    image.SetMetaData("0010|0010", "A^Name = x: y")
    for compressed in (False, True):
        path = tmp_path / f"{compressed}.mha"
        sitk.WriteImage(image, str(path), useCompression=compressed)
        state = page.send("POST", "image?name=a.mha", content=path.read_bytes())
        expected = read_image(path)
        np.testing.assert_array_equal(state["image"]["affine"], expected.affine)
        voxels_sent = page.client.get(f"{page.path}/image.nii").content[-2 * expected.array.size :]
        assert voxels_sent == expected.array.tobytes()
        assert "ct by its header, CT" in state["image"]["mapping"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_refused_and_the_session_goes_on(page, tmp_path, monkeypatch, name):
    content, suffix = HOSTILE[name]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = page.client.get(page.path).json()["image"]["digest"]
    answer = page.client.post(f"{page.path}/image?name=a{suffix}", content=content)
    assert answer.status_code in (400, 413), answer.text
    message = answer.json()["error"]["message"]
    assert str(tmp_path) not in message
    assert "root:" not in message
    assert list(tmp_path.iterdir()) == []
    assert page.client.get(page.path).json()["image"]["digest"] == before


def test_after_hostile_images_the_next_click_is_right(page):
    for content, suffix in HOSTILE.values():
        page.client.post(f"{page.path}/image?name=a{suffix}", content=content)
    check_next_click(page)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.nii.gz", "C:\\x\\y.nii.gz", "\u202ecod.nii.gz", "a\nb.nii.gz"]
)
def test_a_name_never_becomes_a_path(page, tmp_path, name):
    path = tmp_path / "image.nii.gz"
    write_nifti(path, voxels(seed=4), AFFINE)
    page.send("POST", "image", params={"name": name}, content=path.read_bytes())
    answer = page.client.get(f"{page.path}/download?kind=labels")
    given = answer.headers["content-disposition"].split('"')[1]
    assert set(given) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not given.startswith(".")
    saved = page.client.post(f"{page.path}/save", json={}).json()["files"][0]
    assert saved.endswith(f"saved/{given}")


@pytest.mark.parametrize("name", ["", "a", "a.png", "a.nhdr", "a.mhd", ".nii.gz.exe", "a.npz"])
def test_other_kinds_of_files_are_refused_by_their_name(page, name):
    answer = page.client.post(f"{page.path}/image", params={"name": name}, content=b"x")
    refused(answer, 400, "bad_image")


def test_a_body_is_refused_by_its_length_before_it_is_read(page):
    headers = {"Content-Length": str(10**9)}
    path = f"{page.path}/image?name=a.nii.gz"
    refused(page.client.post(path, headers=headers, content=b"x"), 413, "too_large")
    refused(page.client.post(f"{page.path}/undo", content=b" " * 2**21), 413, "too_large")


def test_a_body_without_length_is_counted(page, monkeypatch):
    monkeypatch.setattr(uploads, "SLACK_BYTES", -8 * 10**6 + 1000)
    path = f"{page.path}/image?name=a.nii.gz"
    answer = page.client.post(path, content=(b"x" * 100 for _ in range(100)))
    refused(answer, 413, "too_large")


BODIES = [
    b"", b"null", b"[]", b"{", b'{"target": 1}', b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 10**5,
    b'{"target": 1, "type": "point", "at": [1, 2]}',
    b'{"target": 1, "type": "point", "at": [1, 2, NaN]}',
    b'{"target": 1, "type": "point", "at": [1, 2, 1e999]}',
    b'{"target": 1, "type": "point", "at": [1, 2, ' + b"9" * 5000 + b"]}",
    b'{"target": 1, "type": "point", "at": [1, 2, "3"]}',
    b'{"target": 1, "type": "point", "at": [1, 2, 3], "more": 1}',
    b'{"target": 1, "type": "point", "at": [99, 2, 3]}',
    b'{"target": 1, "type": "point", "at": [-1, 2, 3]}',
    b'{"target": 0, "type": "point", "at": [1, 2, 3]}',
    b'{"target": 99, "type": "point", "at": [1, 2, 3]}',
    b'{"target": true, "type": "point", "at": [1, 2, 3]}',
    b'{"target": 1, "type": "point", "at": [1, 2, 3], "positive": 5}',
    b'{"target": 1, "type": "box", "from": [99, 99, 99], "to": [100, 100, 100]}',
    b'{"target": 1, "type": "box", "from": [1, 1, 1]}',
    b'{"target": 1, "type": "mask"}',
    json.dumps({"name": "x" * 65}).encode(),
    json.dumps({"name": "a\nb"}).encode(),
    json.dumps({"color": "red; background: url(x)"}).encode(),
    b'{"name": "\\ud800"}',
    b'{"id": "../../../etc/passwd"}',
    b'{"resume": "../../../etc/passwd"}',
    b'{"kind": "labels", "format": "../nifti"}',
]  # fmt: skip
PATHS = ("prompts", "undo", "clear", "targets", "earlier", "save", "prompts.json", "image")


@pytest.mark.parametrize("path", PATHS)
def test_no_body_makes_the_server_fail(page, path):
    tried = 0
    for body in BODIES:
        answer = page.client.post(f"{page.path}/{path}", content=body)
        assert answer.status_code < 500, (body[:80], answer.text)
        tried += 1
    for body in BODIES:
        answer = page.client.request("PATCH", f"{page.path}/targets/1", content=body)
        assert answer.status_code < 500, (body[:80], answer.text)
        tried += 1
    assert tried == 2 * len(BODIES)


def test_after_all_of_them_the_next_click_is_right(page):
    check_next_click(page)


@pytest.mark.parametrize("target", ["0", "256", "9" * 5000, "-1", "x"])
def test_an_unknown_target_of_an_address_is_refused(page, target):
    for method in ("PATCH", "DELETE"):
        answer = page.client.request(method, f"{page.path}/targets/{target}", content=b"{}")
        refused(answer, 404, "no_target")


def test_the_cookie_opens_the_page_alone(with_token):
    with_token.get("/", params={"token": TOKEN})
    assert with_token.get("/api/status").status_code == 200
    for path in ("/start_session", "/status", "/info/"):
        refused(with_token.get(path), 401, "token")


@pytest.mark.parametrize("session", ["x", "..", "0" * 32, "%00", "a" * 5000, "\u00e9"])
def test_an_unknown_session_is_named_so(page, session):
    for path in ("heartbeat", "mask", "image.nii"):
        answer = page.client.get(f"/api/sessions/{session}/{path}")
        assert answer.status_code == 404, answer.text


def test_prompt_files_with_hostile_names_are_shown_as_text(page):
    text = {"coordinates": "zyx", "targets": [{"id": 1, "name": "<img src=x onerror=alert(1)>"}]}
    page.send("POST", "prompts.json", content=json.dumps(text))
    answer = page.client.get(page.path)
    assert answer.headers["content-type"] == "application/json"
    assert page.state["targets"][0]["name"] == "<img src=x onerror=alert(1)>"


def test_a_body_that_ends_early_is_refused():
    messages = [
        {"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}
    ]  # fmt: skip

    async def receive():
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    with pytest.raises(Refusal, match="the body ended before its end"):
        asyncio.run(uploads.read_body(Request(scope, receive)))


def test_folders_of_uploads_are_private_and_removed_after_a_crash(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f"fastsam3d-{ended.pid}-abc"
    running = tmp_path / f"fastsam3d-{os.getppid()}-abc"
    others = [tmp_path / name for name in ("fastsam3d-x-abc", f"other-{ended.pid}-abc")]
    for folder in (left, running, *others):
        folder.mkdir()
    (left / "image.nii").write_bytes(b"x")
    link = tmp_path / f"fastsam3d-{ended.pid}-link"
    link.symlink_to(others[0])
    with private_folder() as own:
        assert own.stat().st_mode & 0o077 == 0
        remove_abandoned_folders()
        assert own.is_dir()
    assert set(tmp_path.iterdir()) == {running, *others, link}
