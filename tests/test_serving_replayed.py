"""Slicer's old plug-in and ITK-SNAP, replayed byte for byte over sockets of their own.

The plug-in sends by the package requests, and opens a connection for each request. ITK-SNAP sends
by libcurl on one connection; before a large body it waits until the server wants it.
"""

import base64
import gzip
import io
import json
import re
import socket

import numpy as np
import pytest
from serving_helpers import CENTRES, SHAPE, plain_masks, running, small_context, voxels

from utils.prompts.kinds import BoxPrompt, Click
from utils.serving.scan import scan_of_array, scan_of_volume
from utils.volumes.grid import Volume

INSIDE, OUTSIDE = Click(CENTRES[0], True), Click((2, 2, 25), False)
BOUNDARY = b"0f9a3c7be1d24e5ab86f0c1d2e3f4a5b"


@pytest.fixture
def port(tmp_path):
    with running(small_context(tmp_path)) as url:
        yield int(url.rpartition(":")[2])


class Connection:
    """A socket that reads one answer after the other."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._read = b""

    def send(self, content):
        self.socket.sendall(content)

    def head(self):
        """Return status and header lines of the next answer."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode().lower()

    def answer(self):
        status, head = self.head()
        length = int(re.search(r"content-length: (\d+)", head)[1])
        while len(self._read) < length:
            self._more()
        body, self._read = self._read[:length], self._read[length:]
        return status, head, body

    def _more(self):
        part = self.socket.recv(2**16)
        assert part, "the server has closed the connection"
        self._read += part


def by_requests(port, path, body, kind, encoding=b""):
    """Send what requests 2.32 sends; return status, head and body of the answer."""
    lie = b"Content-Encoding: gzip\r\n" if encoding else b""
    connection = Connection(port)
    connection.send(
        b"POST " + path + b" HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % port
        + b"User-Agent: python-requests/2.32.3\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\n"
        + b"Connection: keep-alive\r\n" + lie + b"Content-Length: %d\r\n" % len(body)
        + b"Content-Type: " + kind + b"\r\n\r\n"
    )  # fmt: skip
    connection.send(body)
    with connection.socket:
        return connection.answer()


def form(name, content, **fields):
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        % (BOUNDARY, key.encode(), value)
        for key, value in fields.items()
    ]
    front = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n'
    parts.append(front % (BOUNDARY, name) + content)
    return b"".join(parts) + b"\r\n--" + BOUNDARY + b"--\r\n"


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_slicers_old_plugin_is_answered_byte_for_byte(port):
    multipart = b"multipart/form-data; boundary=" + BOUNDARY
    scan = scan_of_array(voxels(), (1.0, 1.0, 1.0), "image.nii.gz")

    def prompt(path, text):
        return by_requests(port, path, text, b"application/json")

    def check(answer, *prompts):
        status, head, body = answer
        assert (status, "content-encoding: gzip" in head) == (200, True)
        bits = np.frombuffer(gzip.decompress(body), np.uint8)
        mask = np.unpackbits(bits, count=np.prod(SHAPE)).reshape(SHAPE)
        np.testing.assert_array_equal(mask, plain_masks({1: prompts}, scan))

    point = b'{"voxel_coord": [6, 7, 8], "positive_click": true}'
    status, _, body = prompt(b"/add_point_interaction", point)
    assert (status, json.loads(body)["message"]) == (200, "No image uploaded")
    _, _, body = by_requests(port, b"/upload_image", form(b"volume.npy", npy(voxels())), multipart)
    assert json.loads(body) == {"status": "ok"}
    empty = gzip.compress(npy(np.zeros(SHAPE, np.uint8)))
    _, _, body = by_requests(
        port, b"/upload_segment", form(b"volume.npy.gz", empty), multipart, encoding=b"gzip"
    )
    assert json.loads(body) == {"status": "ok"}
    check(prompt(b"/add_point_interaction", point), INSIDE)
    corners = b'{"outer_point_one": [17, 12, 40], "outer_point_two": [9, 20, 16], '
    box = BoxPrompt((9.0, 12.0, 16.0), (18.0, 21.0, 28.0))
    check(prompt(b"/add_bbox_interaction", corners + b'"positive_click": true}'), INSIDE, box)


def test_itksnap_is_answered_byte_for_byte(port):
    lps = np.array([[1.2, 0, 0, 5], [0, 1.1, 0, -6], [0, 0, 1, 7], [0, 0, 0, 1]])
    volume = Volume(voxels().astype(np.float32), np.diag([-1, -1, 1, 1]) @ lps)
    scan, connection = scan_of_volume(volume, "image.nii.gz"), Connection(port)

    def get(path):
        connection.send(
            b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\n\r\n" % (path, port)
        )
        status, _, body = connection.answer()
        return status, json.loads(body)

    def check(answer, *prompts):
        status, found = answer
        assert (status, found["status"]) == (200, "success")
        mask = np.frombuffer(gzip.decompress(base64.b64decode(found["result"])), np.int8)
        np.testing.assert_array_equal(mask.reshape(SHAPE), plain_masks({1: prompts}, scan))

    assert get(b"/status") == (200, {"status": "ok", "version": "0.1.6"})
    session = get(b"/v2/start_session/fastsam3d")[1]["session_id"].encode()
    metadata = json.dumps({
        "dimensions": list(SHAPE[::-1]), "spacing": [1.2, 1.1, 1.0], "origin": [5, -6, 7],
        "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1], "components_per_pixel": 1,
        "component_type": "float32",
    }).encode()  # fmt: skip
    # Stored without compression, so that the body is large enough to be announced.
    image = gzip.compress(voxels().astype("<f4").tobytes(), compresslevel=0)
    dashes = b"------------------------6d1c0b2a39f84e57"
    body = (
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="image.gz"\r\n'
        b"Content-Type: application/gzip\r\n\r\n%b\r\n"
        b'--%b\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n%b\r\n--%b--\r\n'
        % (dashes, image, dashes, metadata, dashes)
    )
    connection.send(
        b"POST /v2/upload_raw/%b?filename=upload.nii.gz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
        b"Accept: */*\r\nContent-Length: %d\r\nContent-Type: multipart/form-data; boundary=%b\r\n"
        b"Expect: 100-continue\r\n\r\n" % (session, port, len(body), dashes)
    )
    assert connection.head()[0] == 100
    connection.send(body)
    assert connection.answer()[0] == 200
    z, y, x = CENTRES[0]
    point = b"/v2/process_point_interaction/%b?point=%d&point=%d&point=%d&foreground=true"
    check(get(point % (session, x, y, z)), INSIDE)
    old = b"/process_point_interaction/%b?x=25&y=2&z=2&foreground=false" % session
    check(get(old), INSIDE, OUTSIDE)
    assert get(b"/v2/reset_interactions/" + session) == (200, {"status": "success"})
    assert get(b"/v2/end_session/" + session)[0] == 200
    assert get(point % (session, x, y, z))[0] == 404
    connection.socket.close()
