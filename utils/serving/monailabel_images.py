"""The part of MONAI Label's protocol about its collection of images and labels.

This server keeps no collection. An image that a client names stays in memory as a session of this
client, and a label goes to ``--save-dir``. 3D Slicer's module sends both when a user submits a
label, and from then on names the image in its requests, rather than a session.
"""

import asyncio
from pathlib import Path

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from utils.errors import InputError
from utils.files.atomic import unwritable
from utils.files.images import image_stem, read_image
from utils.serving.context import Context
from utils.serving.downloads import labels_file, safe_name, save_new
from utils.serving.forms import bad_form, file_of, form_of
from utils.serving.frames import json_response
from utils.serving.private_folders import private_folder
from utils.serving.refusals import Refusal
from utils.serving.registry import Intake, OpenSession
from utils.serving.scan import IntensityFlags, Scan, voxel_bytes
from utils.serving.session import Session
from utils.serving.uploads import (
    MAX_ITEMSIZE,
    bad_image,
    declared_voxels,
    most_bytes,
    read_upload,
    upload_suffix,
)
from utils.volumes.grid import Volume, is_same_affine
from utils.volumes.labels import checked_label

KIND = "monailabel"
OTHERS = ("/datastore/{rest:path}", "/activelearning/{rest:path}", "/train/{rest:path}")

Client = tuple[str, str]


class MonaiImages:
    """The images that clients have sent, and the handlers of the paths about them."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._ids: dict[tuple[Client, str], str] = {}  # client and name of the image -> session

    def routes(self) -> list[Route]:
        """Return the paths with their handlers."""
        return [
            Route("/datastore/", self.put_image, methods=["PUT"]),
            Route("/datastore/label", self.put_label, methods=["PUT"]),
            *(Route(path, self.what_this_is, methods=["GET", "POST", "DELETE"]) for path in OTHERS),
        ]

    async def put_image(self, request: Request) -> Response:
        """Take in an image under the client's name of it; one that is open already stays so."""
        registry, image = self.context.registry, _image_name(request)
        with registry.intake() as intake:
            form = await form_of(request, most_bytes(self.context.max_voxels), intake)
            content, suffix = file_of(form), upload_suffix(form.names.get("file", ""))
            name = image if image.lower().endswith(suffix) else f"{image}{suffix}"
            scan = await self.read(name, content, intake)
            each = await self._same(request, scan)
            if each is None:
                before = self._ids.get((client_of(request), image), "")
                if list(self._ids.values()).count(before) == 1:  # no other name has it
                    registry.close(before)
                each = registry.open(KIND)
                await self.open(request, each, scan)
        self._ids = {key: value for key, value in self._ids.items() if registry.has(value)}
        self._ids[client_of(request), image] = each.id
        return json_response({"image": image})

    async def put_label(self, request: Request) -> Response:
        """Write a label into ``--save-dir``, on its image's grid and with the image's header."""
        image = _image_name(request)
        each = self.find(request, image)
        with self.context.registry.intake() as intake:
            form = await form_of(request, most_bytes(self.context.max_voxels), intake)
            content, name = file_of(form, "label"), form.names.get("label", "")
            async with self.context.decoding:
                labels = await asyncio.to_thread(self._read_labels, each, name, content, intake)

        # The session may have the name of a temporary file of the client.
        file_name = f"{safe_name(image_stem(Path(image)))}_labels.nii.gz"

        def job(session: Session) -> Path:
            _, content = labels_file(session, "nifti", labels)
            try:
                return save_new(self.context.save_dir, file_name, content)
            except OSError as error:
                raise unwritable(self.context.save_dir / file_name, error) from error

        path = await self.context.registry.run(each, job)
        return json_response({"image": image, "label": path.name, "file": str(path)})

    async def what_this_is(self, request: Request) -> Response:
        """Answer to requests for a collection of images and for trainings, of which there is none.

        Raises:
            Refusal: always.
        """
        raise Refusal(
            404, "no_such_path",
            "this server is FastSAM3D: it segments the image that the client has open, keeps no "
            "collection of images, chooses no samples and trains nothing. Expected points on an "
            "image: load it in the client, and place points. To train, see docs/training.md.",
        )  # fmt: skip

    async def open(self, request: Request, each: OpenSession, scan: Scan) -> None:
        """Open an image in a session of a client; the session is closed where this fails."""
        try:
            await self.context.registry.run(each, lambda session: session.set_scan(scan))
        except BaseException:
            self.context.registry.close(each.id)
            raise
        each.extra["client"] = client_of(request)

    def find(self, request: Request, image: str) -> OpenSession:
        """Return the session of an image that the client has sent.

        Raises:
            Refusal: there is none, or it was closed.
        """
        session_id = self._ids.get((client_of(request), image), "")
        if not self.context.registry.has(session_id):
            raise Refusal(
                404, "no_session",
                f"there is no image {image[:60]!a} of yours: it was never sent, or closed after a "
                "time without requests. Expected an open one: upload the volume again.",
            )  # fmt: skip
        return self.context.registry.get(session_id, KIND)

    async def read(self, name: str, content: bytes, intake: Intake) -> Scan:
        """Return the scan of an uploaded file.

        Raises:
            Refusal: it cannot be used, or there is no room.
        """
        async with self.context.decoding:
            return await asyncio.to_thread(self._read, name, content, intake)

    def _read(self, name: str, content: bytes, intake: Intake) -> Scan:
        with private_folder() as folder:
            path = self._checked(folder, name, content, intake)
            return read_upload(path, name, IntensityFlags(), self.context.max_voxels)

    def _read_labels(
        self, each: OpenSession, name: str, content: bytes, intake: Intake
    ) -> np.ndarray:
        """Return the labels (D, H, W) of an uploaded file, on the grid of the session's image."""
        with private_folder() as folder:
            path = self._checked(folder, name, content, intake)
            try:
                volume = read_image(path, self.context.max_voxels)
                _require_grid_of(each.session.scan.volume, volume)
                return checked_label(volume.array, path).array
            except InputError as error:
                raise bad_image(path, name, error) from error

    def _checked(self, folder: Path, name: str, content: bytes, intake: Intake) -> Path:
        """Write an upload to a file of ours, and check its header, in a thread of its own."""
        path = folder / f"image{upload_suffix(name)}"
        path.write_bytes(content)
        try:
            voxels = declared_voxels(path, self.context.max_voxels)
        except InputError as error:
            raise bad_image(path, name, error) from error
        intake.promise(voxels * voxel_bytes(MAX_ITEMSIZE // 2))
        return path

    async def _same(self, request: Request, scan: Scan) -> OpenSession | None:
        """Return the client's session that has this image open already."""
        registry, client = self.context.registry, client_of(request)
        for each in registry.of_kind(KIND):
            opened = each.session.scan
            if each.extra.get("client") != client or opened is None:
                continue
            is_same = await asyncio.to_thread(lambda one=opened: one.digest == scan.digest)
            if is_same and registry.has(each.id):
                return registry.get(each.id, KIND)
        return None


def client_of(request: Request) -> Client:
    """Return what tells a client from others: its address, and the token in its URL's prefix."""
    address = request.client.host if request.client else ""
    return address, request.scope.get("path_token", "")


def _image_name(request: Request) -> str:
    image = request.query_params.get("image", "")
    if not 0 < len(image) <= 200:
        raise bad_form("its address has no image=NAME of at most 200 characters")
    return image


def _require_grid_of(image: Volume, label: Volume) -> None:
    shared = any(is_same_affine(a, b) for a in image.places for b in label.places)
    if label.shape != image.shape or not shared:
        raise InputError(
            f"the label has the shape {label.shape}, or another place than the image of shape "
            f"{image.shape}. Expected the image's grid: export the segmentation with the image as "
            "its reference, not as .seg.nrrd."
        )
