"""Quantise an exported image encoder to 8-bit integers.

Reads   --folder      image_encoder.onnx and export.json of segment_anything/export.py
        --calibrate   a crop cache of preparelabel.py, for the ranges of the activations
Writes  --folder      image_encoder_int8.onnx; its difference from float32 is added to export.json

Convolutions and matrix products with weights use integers, with one scale for each output channel.
Each activation has one range, measured on the crops. The first convolution, on the image, stays
float32, since one input channel costs little. Attention, norms and activation functions also stay
float32.

    python -m segment_anything.export --checkpoint work_dir/student/student.pth --out onnx
    python -m utils.training.quantise_encoder --folder onnx --calibrate work_dir/crops
"""

import argparse
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from segment_anything import ConfigError, SamConfig
from segment_anything.export_files import ENCODER, FACTS, notes_of
from segment_anything.onnx_encoder import FINGERPRINT, OnnxError, needed, open_session
from utils.cases.choice import evenly_spaced
from utils.errors import InputError, exit_on_input_error
from utils.files.atomic import atomic_path
from utils.files.lock import owned
from utils.files.strict_json import read_json
from utils.run.flags import positive_int
from utils.training.crop_cache import CropIndex, read_index, read_target
from utils.volumes.geometry import CropRule

INT8_ENCODER = "image_encoder_int8.onnx"
CHECKED = 8  # crops on which the difference is measured


def calibration_crops(index: CropIndex, rule: CropRule, count: int) -> Iterator[np.ndarray]:
    """Yield crops of ``count`` targets spread evenly over a cache: (1, 1, S, S, S) float32."""
    for row in evenly_spaced(index.samples, count):
        target = read_target(index.folder, row)
        yield target.cut_centred(rule).image[None, None]


def quantise(source: Path, target: Path, crops: Iterator[np.ndarray]) -> None:
    """Write the 8-bit form of an encoder.

    Args:
        source: ONNX file of the float32 encoder.
        target: file to write.
        crops: (1, 1, S, S, S) float32 each; the ranges of the activations are measured on them.

    Raises:
        OnnxError: a package is missing.
        WriteError: the disk is full, or the folder cannot be written to.
    """
    onnx = needed("onnx")
    quantization = needed("onnxruntime.quantization")
    needed("onnxruntime.quantization.shape_inference")

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            crop = next(crops, None)
            return None if crop is None else {"image": crop}

    with tempfile.TemporaryDirectory() as folder:
        prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quantization.shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        quantization.quantize_static(
            prepared,
            made,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_exclude=[n.name for n in nodes if n.op_type == "Conv" and "image" in n.input],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},  # leaves attention in float32
        )
        model = onnx.load(made)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(source, load_external_data=False).metadata_props)
    with atomic_path(target) as temporary:
        temporary.write_bytes(model.SerializeToString())


def mean_difference(files: tuple[Path, Path], crops: Iterator[np.ndarray]) -> float:
    """Return the mean over crops of |a - b| / |b|, for the embeddings a, b of two encoders."""
    sessions = [open_session(path) for path in files]
    found = []
    for crop in crops:
        own, other = (session.run(None, {"image": crop})[0] for session in sessions)
        found.append(np.linalg.norm(own - other) / np.linalg.norm(other))
    return float(np.mean(found))


def read_facts(folder: Path) -> dict[str, Any]:
    """Read export.json.

    Raises:
        InputError: it is missing, or not a file that segment_anything.export wrote.
    """
    path = folder / FACTS
    expected = "export.json, which python -m segment_anything.export writes"
    if not path.exists():
        raise InputError(
            f"{path}: not found, expected {expected}.\n"
            "Export the network first, or give its folder."
        )
    facts = read_json(path, expected, dict[str, Any])
    try:
        config = SamConfig.from_dict(facts["config"])
        CropRule.read(facts.get("crop_rule"), config.encoder.img_size, path)
        return {"crop_rule": None} | facts
    except (InputError, ConfigError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: holds no network that can be used ({error}).\n"
            f"Expected {expected}: export the "
            "network again."
        ) from error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="folder that segment_anything.export wrote")
    add("--calibrate", type=Path, required=True, help="a crop cache of preparelabel.py")
    add(
        "--crops",
        type=positive_int,
        default=32,
        help="crops to calibrate on (default: %(default)s)",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> tuple[Path, float]:
    """Quantise the encoder; return the new file and its relative difference from float32."""
    facts = read_facts(args.folder)
    with owned(args.folder):
        return _run(args, facts)


def _run(args: argparse.Namespace, facts: dict[str, Any]) -> tuple[Path, float]:
    size = facts["config"]["encoder"]["img_size"]
    rule = CropRule.read(facts["crop_rule"], size, args.folder / FACTS)
    index = read_index(args.calibrate)
    files = args.folder / INT8_ENCODER, args.folder / ENCODER
    if INT8_ENCODER not in facts:
        _require_own(files[0])
    try:
        open_session(files[1])
        quantise(files[1], files[0], calibration_crops(index, rule, args.crops))
        difference = mean_difference(files, calibration_crops(index, rule, CHECKED))
    except OnnxError as error:
        raise InputError(str(error)) from error
    facts[INT8_ENCODER] = {"crops": args.crops, "relative_difference_to_float32": difference}
    with atomic_path(args.folder / FACTS) as temporary:
        temporary.write_text(json.dumps(facts, indent=1))
    return files[0], difference


def _require_own(path: Path) -> None:
    """Raise an `InputError` if ``path`` is there and was not written by this script."""
    if not os.path.lexists(path):
        return
    with suppress(OnnxError):
        if FINGERPRINT in notes_of(path):
            return
    raise InputError(
        f"{path}: was not written by this script, which would replace it. Expected no such file: "
        "move it away."
    )


@exit_on_input_error
def main() -> int:
    args = parse_args()
    logging.disable(logging.WARNING)  # ONNX Runtime recommends steps that are done here already
    path, difference = run(args)
    print(f"{path}: differs from {ENCODER} by {difference:.1e} of the norm")
    return 0


if __name__ == "__main__":
    main()
