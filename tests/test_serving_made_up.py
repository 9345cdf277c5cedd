"""Made-up requests: whatever is sent, the answer is an error of the client, and the next is right.

    SERVING_EXAMPLES=5000 python -m pytest tests/test_serving_made_up.py

tries thousands of requests; without the variable there are a few hundred.
"""

import contextlib
import gzip
import io
import json
import os
import socket

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_helpers import (
    CENTRES,
    PageClient,
    client_of,
    plain_masks,
    running,
    small_context,
    small_scan,
    voxels,
)

from utils.prompts.kinds import Click
from utils.serving.nnia import pack, unpack
from utils.serving.refusals import Refusal
from utils.serving.scan import scan_of_array

EXAMPLES = int(os.environ.get("SERVING_EXAMPLES", "80"))
MADE_UP = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES < 100,
    suppress_health_check=list(HealthCheck),
)
IMAGE = nib.Nifti1Image(voxels().T, np.diag([1.2, 1.1, 1.0, 1.0])).to_bytes()
ARRAY = pack(voxels()[None])
MASK_AFTER_CLICK = plain_masks(
    {1: [Click(CENTRES[0], True)]}, scan_of_array(voxels(), (1.0, 1.0, 1.0), "image.nii.gz")
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with client_of(small_context(tmp_path_factory.mktemp("server"), small_scan())) as client:
        page = PageClient(client)
        yield page
        page.send("POST", "clear", {"target": None})
        page.labels[:] = 0
        page.click(CENTRES[0])
        np.testing.assert_array_equal(page.labels, plain_masks({1: [Click(CENTRES[0], True)]}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["target", "type", "at", "from", "to", "id", "name"]), inner
        )
    ),
    max_leaves=8,
)
PLACE = st.lists(st.integers(-(2**70), 2**70) | st.integers(-3, 30) | st.floats(), max_size=4)
PROMPTS = st.fixed_dictionaries(
    {"target": st.integers(-1, 3) | JSON, "type": st.sampled_from(["point", "box", "mask"])},
    optional={"at": PLACE, "from": PLACE, "to": PLACE, "positive": JSON},
)
PATHS = ("prompts", "undo", "redo", "targets", "earlier", "save", "prompts.json", "targets/1")


@MADE_UP
@given(
    st.sampled_from(["POST", "PATCH", "PUT", "GET", "OPTIONS"]),
    st.sampled_from(PATHS),
    PROMPTS | JSON | st.binary(max_size=200),
)
def test_made_up_bodies(page, method, path, body):
    if path == "save" and isinstance(body, dict):
        return  # would write files
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = page.client.request(method, f"{page.path}/{path}", content=content)
    assert answer.status_code < 500 or answer.status_code == 503


NUMBERS = st.lists(st.integers(-(2**70), 2**70) | st.floats() | st.integers(-3, 30), max_size=4)
INTERACTIONS = st.fixed_dictionaries(
    {},
    optional={
        "coordinates": NUMBERS,
        "bbox_coords": st.lists(NUMBERS, max_size=3),
        "voxel_coord": NUMBERS,
        "positive_click": JSON,
        "include_interaction": st.booleans() | JSON,
        "run_prediction": st.booleans() | JSON,
        "interaction_bbox": st.lists(NUMBERS, max_size=3),
    },
)
OTHERS = (
    "/add_point_interaction", "/add_bbox_interaction", "/add_scribble_interaction", "/undo",
    "/add_initial_seg_interaction", "/set_target_buffer", "/set_image", "/predict", "/heartbeat",
    "/upload_image", "/upload_segment", "/infer/fastsam3d", "/upload_raw/x",
)  # fmt: skip


@pytest.fixture(scope="module")
def leased(tmp_path_factory):
    context = small_context(tmp_path_factory.mktemp("server"))
    context.registry._clock = lambda: 0.0  # the lease does not expire, however long all tests take
    with client_of(context) as client:
        lease = {"X-Lease-Token": client.post("/claim").json()["lease_token"]}
        answer = client.post("/set_image", content=ARRAY, headers=lease)
        assert answer.json() == {"original_image_shape": [1, *voxels().shape]}
        yield client, lease
        assert client.post("/reset_interactions", json={}, headers=lease).status_code == 200
        click = {"coordinates": list(CENTRES[0]), "include_interaction": True}
        answer = client.post("/add_point_interaction", json=click, headers=lease)
        box = json.loads(answer.headers["X-Meta"])["bbox"]
        found = np.zeros(voxels().shape, np.uint8)
        found[tuple(slice(*side) for side in box)] = unpack(answer.content, 10**6)
        np.testing.assert_array_equal(found, MASK_AFTER_CLICK)


@MADE_UP
@given(st.sampled_from(OTHERS), INTERACTIONS | JSON, st.booleans())
def test_made_up_requests_of_other_clients(leased, path, body, with_lease):
    client, lease = leased
    text = json.dumps(body)
    headers = {"X-Meta": text} | (lease if with_lease else {})
    answer = client.post(path, content=text, headers=headers)
    assert answer.status_code < 500 or answer.status_code == 503, answer.text


def changed(data, content):
    """Change, insert or cut some bytes of a file."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content) - 1, 400)))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=4))
    return bytes(content[: data.draw(st.sampled_from([None, 100, 348, 352, 1000]))])


@MADE_UP
@given(st.data(), st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]))
def test_made_up_images(page, data, suffix):
    answer = page.client.post(f"{page.path}/image?name=a{suffix}", content=changed(data, IMAGE))
    assert answer.status_code in (200, 400, 413), answer.text
    if answer.status_code == 200:  # the image may be good still: go back to the first
        page.client.delete(page.path)
        page.__init__(page.client)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A client of MONAI Label's protocol that has sent the image "good"."""
    context = small_context(tmp_path_factory.mktemp("server"), sessions=2)
    with client_of(context) as client:
        files = {"file": ("a.nii", IMAGE)}
        assert client.put("/datastore/?image=good", files=files).status_code == 200
        yield client
        # The voxels are whole numbers, so the image itself is a label on its grid.
        answer = client.put("/datastore/label?image=good", files={"label": ("a.nii", IMAGE)})
        assert answer.status_code == 200, answer.text


CURVE = np.zeros(voxels().shape, np.uint8)
CURVE[6, 6:9, 2:27] = 1


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """A client with two sessions: of Slicer's old plug-in, and of ITK-SNAP, whose id is given."""
    with client_of(small_context(tmp_path_factory.mktemp("server"))) as client:
        files = {"file": ("volume.npy", npy(voxels()))}
        assert client.post("/upload_image", files=files).json() == {"status": "ok"}
        session = client.get("/start_session").json()["session_id"]
        shape = {"dimensions": list(voxels().shape[::-1]), "spacing": [1, 1, 1]}
        fields = {"metadata": json.dumps(shape)}
        files = {"file": ("image.gz", gzip.compress(voxels().astype("<f4").tobytes()))}
        answer = client.post(f"/upload_raw/{session}", files=files, data=fields)
        assert answer.status_code == 200, answer.text
        yield client, session, fields
        click = {"voxel_coord": list(CENTRES[0]), "positive_click": True}
        bits = np.frombuffer(client.post("/add_point_interaction", json=click).content, np.uint8)
        found = np.unpackbits(bits, count=CURVE.size).reshape(CURVE.shape)
        np.testing.assert_array_equal(found, MASK_AFTER_CLICK)


@MADE_UP
@given(st.data(), st.booleans(), st.sampled_from(["scribble", "lasso"]), JSON)
def test_made_up_drawings_of_other_clients(drawing, data, is_damaged_inside, kind, fields):
    client, session, grid = drawing
    for path, content, known in (
        (f"/add_{kind}_interaction", npy(CURVE), {"positive_click": "True"}),
        (f"/process_{kind}_interaction/{session}", CURVE.astype("<f4").tobytes(), grid),
    ):
        sent = changed(data, content) if is_damaged_inside else content
        sent = gzip.compress(sent) if is_damaged_inside else changed(data, gzip.compress(sent))
        form = known if is_damaged_inside else {name: json.dumps(fields) for name in known}
        answer = client.post(path, files={"file": ("a.gz", sent)}, data=form)
        assert answer.status_code in (200, 400, 413, 429), answer.text
    client.get(f"/reset_interactions/{session}")
    client.post("/upload_segment", files={"file": ("a.gz", gzip.compress(npy(CURVE * 0)))})


@MADE_UP
@given(st.data(), st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]))
def test_made_up_images_and_labels_of_monai_label(named, data, suffix):
    content = changed(data, IMAGE)
    answer = named.put("/datastore/label?image=good", files={"label": (f"a{suffix}", content)})
    assert answer.status_code in (200, 400, 413), answer.text
    answer = named.put("/datastore/?image=other", files={"file": (f"a{suffix}", content)})
    # 503: the second of two places is taken by an image that was good still.
    assert answer.status_code in (200, 400, 413, 503), answer.text


@MADE_UP
@given(st.data())
def test_made_up_envelopes(data):
    with contextlib.suppress(Refusal):  # any other error fails the test
        assert unpack(changed(data, ARRAY), 2**20).nbytes <= 2**20


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with running(small_context(tmp_path_factory.mktemp("server"), small_scan())) as url:
        yield int(url.rpartition(":")[2])


def exchange(port, sent):
    """Send bytes to the server, and return what comes back until it closes the connection."""
    found = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as connection,
        contextlib.suppress(ConnectionError, OSError),  # the server may close before all is sent
    ):
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            found += part
    return found


LINES = [
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET /static/../../serve.py HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"POST /claim HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /claim HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"POST /claim HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
    b"POST /claim HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 2**17 + b"\r\n\r\n",
    b"GET /" + b"a" * 2**17 + b" HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"\0" * 1000,
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /api/status HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
]


@pytest.mark.parametrize("number", range(len(LINES)))
def test_lines_that_are_no_http_do_no_harm(port, number):
    answer = exchange(port, LINES[number])
    status = answer[9:12]
    assert not status.startswith(b"5")
    assert b"import argparse" not in answer
    assert exchange(port, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")[9:12] == b"200"


@MADE_UP
@given(st.sampled_from(LINES), st.data())
def test_made_up_lines_do_no_harm(port, line, data):
    answer = exchange(port, changed(data, line))
    assert not answer[9:12].startswith(b"5")
