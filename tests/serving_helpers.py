"""Sessions for tests: a small image with two balls, and a small network with random weights."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from small_cases import ball
from small_networks import RULE, small_student
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from utils.prediction.predictor import Predictor
from utils.prediction.region import ZoomRule
from utils.prediction.session import PredictorOptions
from utils.serving.context import Context
from utils.serving.scan import Scan, scan_of_array
from utils.serving.server import (
    UVICORN,
    Address,
    Served,
    app_of,
    context_of,
    listening_socket,
)
from utils.serving.session import Session

SHAPE = (20, 24, 28)
SPACING_ZYX = (1.0, 1.1, 1.2)
CENTRES = ((6, 7, 8), (13, 16, 20))
#: Regions that stay where the first prompt puts them: a click is decoded once.
QUICK = PredictorOptions(zoom=ZoomRule(passes=0), tile_above=0)


def voxels(shape=SHAPE, seed: int = 0) -> np.ndarray:
    """Two bright balls in noise, (D, H, W) uint8."""
    balls = sum(ball(shape, centre, 4.5) for centre in CENTRES)
    noise = np.random.default_rng(seed).integers(0, 30, shape)
    return (60 + 90 * balls + noise).astype(np.uint8)


def small_scan(seed: int = 0) -> Scan:
    return scan_of_array(voxels(seed=seed), SPACING_ZYX, "scan.nii.gz")


def small_predictor(options: PredictorOptions = QUICK) -> Predictor:
    return Predictor(small_student(), RULE, options=options)


def open_session(scan: Scan | None = None) -> Session:
    session = Session(small_predictor())
    session.set_scan(small_scan() if scan is None else scan)
    return session


def plain_masks(prompts, scan: Scan | None = None) -> np.ndarray:
    """The label map of a fresh `Predictor` that is given the prompts once, (D, H, W)."""
    scan = small_scan() if scan is None else scan
    predictor = small_predictor()
    predictor.set_image(scan.image, affine=scan.volume.affine, hounsfield=scan.hounsfield)
    for target, given in prompts.items():
        for prompt in given:
            predictor.add(prompt, target=target)
    return predictor.segmentation()


def small_context(folder: Path, scan: Scan | None = None, **changes: object) -> Context:
    """The state of a server with the small network; no port is opened."""
    facts = {
        "predictor": small_predictor(),
        "network": "student.pth",
        "digest": "d" * 32,
        "scan": scan,
        "sessions": 3,
        "max_voxels": 10**6,
        "save_dir": folder / "saved",
    }
    return context_of(Served(**facts | changes))


def small_app(context: Context, **address: object) -> ASGIApp:
    return app_of(context, Address(**{"host": "127.0.0.1", "port": 1527} | address))


@contextmanager
def client_of(context: Context, **address: object) -> Iterator[TestClient]:
    """A client of an app that runs without a port."""
    with TestClient(small_app(context, **address), base_url="http://127.0.0.1:1527") as client:
        yield client
    context.registry.worker.close()


@contextmanager
def running(context: Context, **address: object) -> Iterator[str]:
    """The address of a server that listens on a free port of this machine."""
    with listening_socket(Address("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(small_app(context, port=port, **address), **UVICORN))
        thread = threading.Thread(target=server.run, args=[[listening]], daemon=True)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(20)
            context.registry.worker.close()


class PageClient:
    """What the page does: sends requests of one session, and pastes what changed."""

    def __init__(self, client: TestClient, **wanted: str) -> None:
        self.client = client
        answer = client.post("/api/sessions", json=wanted)
        assert answer.status_code == 201, answer.text
        self.state = answer.json()
        self.labels = np.zeros(self.state["image"]["shape_zyx"], np.uint8)

    @property
    def path(self) -> str:
        return f"/api/sessions/{self.state['session']}"

    def send(self, method: str, path: str, body: object = None, **more: object) -> dict:
        """Send a request that changes the session; paste the frame; return the state."""
        more = more if body is None else more | {"json": body}
        answer = self.client.request(method, f"{self.path}/{path}", **more)
        assert answer.status_code in (200, 201), answer.text
        return self.paste(answer.content)

    def paste(self, content: bytes) -> dict:
        length = int.from_bytes(content[:4], "little")
        self.state = json.loads(content[4 : 4 + length])
        if self.state["image"] and tuple(self.state["image"]["shape_zyx"]) != self.labels.shape:
            self.labels = np.zeros(self.state["image"]["shape_zyx"], np.uint8)
        if self.state["box"] is None:
            assert len(content) == 4 + length
            return self.state
        box = tuple(slice(*side) for side in self.state["box"])
        runs = content[4 + length :]
        count = len(runs) // 5
        lengths, values = np.frombuffer(runs, "<u4", count), list(runs[4 * count :])
        self.labels[box] = np.repeat(values, lengths).reshape(self.labels[box].shape)
        return self.state

    def click(self, at, positive: bool = True, target: int = 1) -> dict:
        body = {"target": target, "type": "point", "at": list(at), "positive": positive}
        return self.send("POST", "prompts", body)

    def box(self, corner, opposite, target: int = 1) -> dict:
        body = {"target": target, "type": "box", "from": list(corner), "to": list(opposite)}
        return self.send("POST", "prompts", body)
