"""Connections that ask for nothing are closed; those that wait for an answer are not."""

import socket
import threading
import time
import urllib.request

import pytest
from serving_helpers import running, small_context, small_scan

from utils.serving import connections

PATIENCE = 1.0


@pytest.fixture
def context(tmp_path):
    return small_context(tmp_path, small_scan())


@pytest.fixture
def port(context, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE_SECONDS", PATIENCE)
    with running(context) as url:
        yield int(url.rpartition(":")[2])


def connected(port, sent=b""):
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(sent)
    return connection


HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET /heal", HEAD, HEAD + b"\r\nGET /heal"])
def test_a_connection_without_a_whole_request_is_closed(port, sent):
    with connected(port, sent) as connection:
        start, found = time.monotonic(), b""
        while part := connection.recv(65536):
            found += part
        assert PATIENCE / 4 < time.monotonic() - start < 20
    assert found.count(b'{"ok": true}') == sent.count(b"\r\n\r\n")


def test_no_answer_waits_for_the_confirmation_of_its_first_part(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        times = []
        for _ in range(9):
            start, found = time.perf_counter(), b""
            connection.sendall(HEAD + b"\r\n")
            while b"\r\n\r\n" not in found or found.endswith(b"\r\n\r\n"):
                found += connection.recv(2**16)
            times.append(time.perf_counter() - start)
    assert min(times[4:]) < 0.03  # 0.04 with Nagle's algorithm, also on a busy machine


def test_an_answer_that_takes_long_is_waited_for(port, context):
    body = b"{}"
    head = b"POST /api/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n"
    ready = threading.Event()
    context.registry.worker._executor.submit(ready.wait, 30)
    with connected(port, head + body) as connection:
        time.sleep(3 * PATIENCE)
        ready.set()
        assert connection.recv(65536).startswith(b"HTTP/1.1 201")


def test_a_body_that_comes_slowly_is_waited_for(port):
    head = b"POST /claim HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\n\r\n"
    with connected(port, head) as connection:
        for _ in range(4):
            time.sleep(PATIENCE)
            connection.sendall(b" ")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
        assert answer.status == 200
