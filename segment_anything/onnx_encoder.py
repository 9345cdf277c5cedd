"""Use the image encoder of an ONNX file in place of a network's own.

    use_onnx_encoder(model, "onnx/image_encoder_int8.onnx")

ONNX Runtime runs the file on the CPU, also where the rest of the network is on a GPU. ONNX Runtime
is optional: it is imported when a file is opened.
"""

import hashlib
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from segment_anything.checkpoint import fingerprint
from segment_anything.modeling import Sam3D

#: The entry of a file's metadata that holds the fingerprint of its network.
FINGERPRINT = "fingerprint"


class OnnxError(RuntimeError):
    """An ONNX file that cannot be written, run or trusted."""


class OnnxImageEncoder(nn.Module):
    """An image encoder that ONNX Runtime runs: volume to image embedding.

    It uses as many threads as PyTorch and has no gradients. Input and output are always
    float32. Copies and other processes open the file again.

    Args:
        path: An image encoder written by segment_anything/export.py or
            utils/training/quantise_encoder.py.

    Raises:
        OnnxError: ONNX Runtime is not installed, or the file is not an image encoder.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._session: Any = None
        shapes = [
            tensor.shape for tensor in (*self.session.get_inputs(), *self.session.get_outputs())
        ]
        if len(shapes) != 2 or any(len(shape) != 5 for shape in shapes):
            raise OnnxError(
                f"{self.path}: takes and returns tensors of shapes {shapes}, expected one volume "
                "(B, 1, S, S, S) and its embedding (B, E, g, g, g).\n"
                "Give the image_encoder.onnx that segment_anything.export wrote."
            )
        self.img_size: int = shapes[0][-1]
        self.embedding_shape = tuple(shapes[1][1:])
        # In the state dict, so that two files have different state dicts and fingerprints.
        digest = hashlib.sha256(self.path.read_bytes()).digest()
        self.register_buffer("file_digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))

    @property
    def session(self) -> Any:
        """The open file, an ``onnxruntime.InferenceSession``."""
        if self._session is None:
            self._session = open_session(self.path)
        return self._session

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, 1, S, S, S) to the image embedding (B, E, g, g, g) float32, on x's device.

        Raises:
            ValueError: the volume has another shape.
        """
        size = self.img_size
        if x.dim() != 5 or x.shape[1:] != (1, size, size, size):
            raise ValueError(
                f"image encoder {self.path}: got a volume of shape {tuple(x.shape)}, expected "
                f"(B, 1, {size}, {size}, {size}): crop or pad it first"
            )
        volume = x.detach().to("cpu", torch.float32).contiguous().numpy()
        (embedding,) = self.session.run(None, {self.session.get_inputs()[0].name: volume})
        return torch.from_numpy(embedding).to(x.device)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None}  # a session cannot be copied or pickled


def use_onnx_encoder(model: Sam3D, path: str | Path) -> None:
    """Replace the image encoder of ``model`` by that of an ONNX file.

    Raises:
        OnnxError: as `OnnxImageEncoder`, or the file was made from another network or other
            weights.
    """
    encoder = OnnxImageEncoder(path)
    config = model.config.encoder
    found = (encoder.img_size, encoder.embedding_shape)
    expected = (config.img_size, (config.embedding_chans, *[config.grid_size] * 3))
    of_file = encoder.session.get_modelmeta().custom_metadata_map.get(FINGERPRINT)
    if found != expected or of_file != fingerprint(model):
        raise OnnxError(
            f"{path}: made from the network {of_file}, volumes {found[0]}³ to embeddings "
            f"{found[1]}; expected {fingerprint(model)}, {expected[0]}³ to {expected[1]}.\n"
            "Export the encoder from the checkpoint that it is used with, with the same flags: "
            "python -m segment_anything.export."
        )
    model.image_encoder = encoder


def open_session(path: str | Path) -> Any:
    """Open an ONNX file in ONNX Runtime on the CPU, with as many threads as PyTorch has.

    Raises:
        OnnxError: ONNX Runtime is not installed, or the file is missing or damaged.
    """
    onnxruntime = needed("onnxruntime")
    if not Path(path).is_file():
        raise OnnxError(
            f"{path}: no such file, expected an ONNX file.\n"
            "Write one: python -m segment_anything.export."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise OnnxError(
            f"{path}: cannot be opened ({str(error).splitlines()[0]}), expected an ONNX file.\n"
            "Export it again."
        ) from error


def needed(package: str) -> ModuleType:
    """Import and return an optional package.

    Raises:
        OnnxError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise OnnxError(
            f"ONNX files need the package {package}, which is not installed ({error}).\n"
            "Install it: pip install -r requirements-export.txt"
        ) from error
