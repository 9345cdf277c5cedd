"""The page in a notebook's cell: `show` starts a server of its own and displays it in a frame."""

import utils.run.threads  # noqa: F401  before NumPy and torch

# isort: split
import argparse
import html
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from utils.errors import InputError
from utils.files.atomic import make_folder
from utils.files.strict_json import parse_json, read_json
from utils.prediction.predictor import Predictor, ready_predictor
from utils.run.checkpoint_flags import checkpoint_file, with_local_files
from utils.run.network import open_network
from utils.serving.background import BackgroundServer
from utils.serving.defaults import MAX_VOXELS, SAVE_DIR, default_checkpoint
from utils.serving.page_state import target_entry
from utils.serving.prompt_file import prompts_json
from utils.serving.scan import IntensityFlags, Scan, open_scan, scan_of_array
from utils.serving.server import Address, Served, file_digest
from utils.serving.session import Session
from utils.serving.worker import Worker
from utils.volumes.intensity import MODALITIES

JUPYTER_PORT = 8888
#: The word of a kernel's command that names its connection file.
KERNEL_FILE = re.compile(r"(?:--?f=)?(?P<file>.*kernel-[^/\\]*\.json)")
ORIGIN = re.compile(r"https?://[a-z0-9.-]{1,253}(:[0-9]{1,5})?")


class View:
    """An image on the page. As the last line of a cell it is displayed; see `show`."""

    def __init__(self, server: BackgroundServer, height: int) -> None:
        self._server, self.height = server, height

    @property
    def url(self) -> str:
        """The page's address. It holds the secret that opens it."""
        return self._server.address.prefixed_url

    def mask(self, target: int | None = None) -> np.ndarray:
        """Return the mask on the image's grid, as it is now; waits while the network runs.

        Args:
            target: id of one target.

        Returns:
            (D, H, W): of one target bool; of all uint8, the id of the target or 0.

        Raises:
            InputError: there is no such target, or the view is closed.
        """

        def job(session: Session) -> np.ndarray:
            if target is None:
                return session.labels.copy()
            if target not in session.prompts:
                raise InputError(
                    f"found target {target}, expected one of {sorted(session.prompts)}: "
                    "view.targets() lists them."
                )
            return session.labels == target

        return self._server.ask(job)

    def targets(self) -> list[dict]:
        """Return ``id``, ``name``, ``voxels``, ``ml`` and ``prompts`` of each target.

        Raises:
            InputError: the view is closed.
        """
        return self._server.ask(
            lambda session: [target_entry(session, number) for number in session.prompts]
        )

    def prompts(self) -> dict:
        """Return the prompts as predict.py reads them from a JSON file; voxels are (z, y, x).

        Raises:
            InputError: the view is closed.
            Refusal: a target starts from a mask, which such a file cannot hold.
        """
        return parse_json(self._server.ask(prompts_json))

    def close(self) -> None:
        """End the server. The masks are gone then; the prompts stay in the folder of autosaves."""
        self._server.close()

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "View(open)" if self._server.is_open else "View(closed)"

    def _repr_html_(self) -> str:
        """Return the frame for the notebook."""
        if not self._server.is_open:
            return "<p>This view is closed.</p>"
        url, origins = html.escape(self.url), html.escape(" ".join(self._server.address.framed_by))
        return (
            f'<iframe src="{url}" title="FastSAM3D" width="100%" height="{self.height}" '
            f'style="border:0" allow="fullscreen"></iframe>\n<p><a href="{url}" target="_blank" '
            f'rel="noopener">Open in a tab of its own.</a> Only notebooks of {origins} may show '
            "the frame. If it stays empty, name yours: show(..., notebook=ADDRESS).</p>"
        )


def show(
    image: str | Path | np.ndarray,
    checkpoint: str | Path | None = None,
    *,
    spacing_zyx: Sequence[float] | None = None,
    modality: str | None = None,
    network: str | None = None,
    names: Sequence[str] = (),
    device: str = "auto",
    height: int = 680,
    notebook: str | None = None,
    port: int = 0,
    save_dir: str | Path = SAVE_DIR,
) -> View:
    """Show an image on the page, to click in, from a cell of a notebook::

        view = show("ct.nii.gz")
        view                        # click
        liver = view.mask(1)        # (D, H, W) bool, on the image's grid

    The server runs in a thread until `View.close`, or until the kernel ends. It listens on
    127.0.0.1 alone, and every request needs a secret that is new each time.

    Args:
        image: a file (NIfTI, NRRD, MetaImage or a DICOM folder); or voxels (D, H, W), which are
            copied, and whose axes grow towards head, back and left.
        checkpoint: a file, or hf://OWNER/REPO/FILE; by default the student that ships.
        spacing_zyx: of voxels without file: mm between them along (D, H, W).
        modality: one of `utils.volumes.intensity.MODALITIES`; by default as predict.py finds it.
        network: name of the network in a released file, as ``vit_b_ori``.
        names: of targets, which the page offers.
        device: as ``--device``.
        height: of the frame, in pixels.
        notebook: address of the notebook in the browser. Pages of no other may show the frame. By
            default that of the Jupyter server on this machine that started the kernel.
        port: of the server; 0: any that is free. For an ssh tunnel, choose it.
        save_dir: folder for masks that are saved on the page, and for autosaves.

    Raises:
        InputError: the image or the checkpoint cannot be used, or the port is in use.
    """
    scan = _scan_of(image, spacing_zyx, modality)
    framed_by = [origin_of(notebook)] if notebook else jupyter_origins()
    named = argparse.Namespace(checkpoint=checkpoint and checkpoint_file(str(checkpoint)))
    path = with_local_files(named).checkpoint or default_checkpoint()
    folder = Path(save_dir).absolute()
    make_folder(folder)
    worker = Worker()

    def opened() -> Predictor:
        model, rule = open_network(path, network)
        return ready_predictor(model, rule, device=device, precision="auto", engine="eager")

    served = Served(
        predictor=worker.call(opened),
        network=path.name,
        digest=file_digest(path),
        scan=scan,
        sessions=1,
        max_voxels=MAX_VOXELS,
        save_dir=folder,
        classes=[str(name)[:64] for name in names],
        worker=worker,
    )
    token = secrets.token_urlsafe(24)
    address = Address("127.0.0.1", port, token, framed_by=framed_by)
    return View(BackgroundServer(served, address), height)


def origin_of(address: str) -> str:
    """Return scheme, host and port of a notebook's address, as browsers write them.

    Raises:
        InputError: the text is no address of a web page.
    """
    parts = urlsplit(address.strip().lower())
    origin = f"{parts.scheme}://{parts.netloc}"
    if not ORIGIN.fullmatch(origin):
        raise InputError(
            f"notebook: found {address[:80]!r}, expected an address such as http://localhost:8888: "
            "copy it from the browser's address bar."
        )
    return origin


def jupyter_origins() -> list[str]:
    """Return the origins of the Jupyter server that started this kernel, else of its usual port.

    Jupyter servers write their port into a file of their runtime folder, and tell kernels their
    process id.
    """
    scheme, port = "http", JUPYTER_PORT
    try:
        process = int(os.environ["JPY_PARENT_PID"])
        found = read_json(runtime_folder() / f"jpserver-{process}.json", "a Jupyter server", dict)
        scheme, port = "https" if found["secure"] else "http", int(found["port"])
    except (InputError, LookupError, TypeError, ValueError):
        pass  # no kernel of a Jupyter server
    return [f"{scheme}://{name}:{port}" for name in ("localhost", "127.0.0.1")]


def runtime_folder() -> Path:
    """Return the folder in which this user's Jupyter servers say where they listen.

    A kernel's command names its own file in that folder: ``-f .../kernel-ID.json``.

    Raises:
        LookupError: this is no kernel of a Jupyter server.
    """
    found = [match["file"] for match in map(KERNEL_FILE.fullmatch, sys.argv) if match]
    return Path(found[0]).parent


def _scan_of(
    image: str | Path | np.ndarray, spacing_zyx: Sequence[float] | None, modality: str | None
) -> Scan:
    """Return the scan of a file or of voxels; see `show`."""
    if modality is not None and modality not in MODALITIES:
        raise InputError(
            f"modality: found {modality!r}, expected one of {', '.join(MODALITIES)}, or none."
        )
    is_file = isinstance(image, (str, Path))
    if is_file and spacing_zyx is not None:
        raise InputError(
            f"{image}: found spacing_zyx with a file, expected the file's own: leave it out."
        )
    if is_file:
        return open_scan(Path(image), IntensityFlags(modality), MAX_VOXELS)
    voxels = np.array(image, order="C")
    if voxels.ndim != 3 or not 0 < voxels.size <= MAX_VOXELS or voxels.dtype.kind not in "buif":
        raise InputError(
            f"the image: found shape {voxels.shape}, dtype {voxels.dtype}; expected numbers along "
            f"(D, H, W), at most {MAX_VOXELS:,}: give one channel, cropped or resampled if needed."
        )
    spacing = np.array([] if spacing_zyx is None else spacing_zyx, np.float64).ravel()
    if spacing.shape != (3,) or not np.all(np.isfinite(spacing)) or spacing.min() <= 0:
        raise InputError(
            f"the image: found spacing_zyx {spacing_zyx} with an array, expected the mm between "
            "voxels along (D, H, W): add spacing_zyx=(2.5, 0.8, 0.8), for example."
        )
    return scan_of_array(voxels, tuple(spacing.tolist()), "image.nii.gz", modality)
