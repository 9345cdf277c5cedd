"""Export a network as two ONNX files: the image encoder and the prompt decoder.

Reads   --checkpoint  ours (student.pth), or a released file with --network
Writes  --out         image_encoder.onnx   image -> image_embedding
                      prompt_decoder.onnx  image_embedding, point_coords, point_labels, mask_input
                                           -> low_res_masks, iou
                      export.json          network, crops, inputs and outputs, differences

Both files take any batch size; the decoder takes one click or more. To decode without a click, give
one point with the label -1. To decode without a mask, give a mask of zeros. A network with
prompt.boxes wants two points more, before the clicks: the start and the stop of a half-open box in
crop voxels, less 0.5, with the labels 2 and 3; without a box with the label -1. Each file is
compared with PyTorch before it is written to --out.

    python -m segment_anything.export --checkpoint student.pth --out onnx
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from segment_anything.build_sam3D import build_from_checkpoint
from segment_anything.checkpoint import (
    CheckpointError,
    fingerprint,
    open_checkpoint,
    require_decoder,
)
from segment_anything.decoding import box_points, decode_points
from segment_anything.export_files import DECODER, ENCODER, FACTS, read_facts, require_own_files
from segment_anything.modeling import PromptEncoder3D, PyramidPromptEncoder3D, Sam3D
from segment_anything.onnx_encoder import FINGERPRINT, OnnxError, needed, open_session

OPSET = 20
#: Largest difference to PyTorch: norm of the difference over PyTorch's norm.
TOLERANCE = 1e-4
#: Batch sizes and numbers of clicks that are compared.
BATCHES, CLICKS = (1, 2), (1, 2, 5)

Inputs = dict[str, Tensor]
Differences = dict[str, dict[str, float]]  # case -> output -> relative difference


class PromptDecoder(nn.Module):
    """Prompt encoder and mask decoder as one graph; the token grid's positions are a constant."""

    def __init__(self, model: Sam3D) -> None:
        super().__init__()
        self.config = model.config
        self.prompt_encoder, self.mask_decoder = model.prompt_encoder, model.mask_decoder
        self.register_buffer("dense_pe", model.prompt_encoder.get_dense_pe().clone())

    def forward(
        self,
        image_embedding: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return low-resolution logits (B, 1, m, m, m) and their predicted IoU (B, 1).

        Args:
            image_embedding: (B, E, g, g, g).
            point_coords: (B, N, 3) indices into the volume's array, in the order of its axes.
            point_labels: (B, N) int64 in {1, 0, -1}; 2 and 3 for the corners of a box.
            mask_input: (B, 1, m, m, m) logits.
        """
        prompts = self.prompt_encoder
        if isinstance(prompts, PyramidPromptEncoder3D):  # it has no loop over the clicks
            clicks = point_coords, point_labels
            return decode_points(self, image_embedding, *clicks, mask_input, self.dense_pe)
        sparse = prompts.embed_points(point_coords, point_labels)
        if prompts.config.click_stamp_sigma > 0:
            mask_input = stamp_at_once(prompts, mask_input, point_coords, point_labels)
        dense = prompts.embed_mask(mask_input, mask_input.shape[0])
        return self.mask_decoder(image_embedding, self.dense_pe, sparse, dense, False)


def stamp_at_once(
    prompts: PromptEncoder3D, masks: Tensor, coords: Tensor, labels: Tensor
) -> Tensor:
    """Return the result of `PromptEncoder3D.stamp_clicks` without a loop over the clicks.

    Arguments and shapes are the same. The ONNX graph cannot loop over an unknown number of clicks,
    so this is a closed form. With weights w_k and logits l_k of N stamps, the mask keeps the share
    prod(1 - w_k), and stamp k adds w_k l_k times the product of (1 - w) over the later stamps.
    Products over clicks are computed as sums of logarithms, those over the later clicks with a
    triangular matrix.
    """
    profiles, logits = prompts.stamp_profiles(coords, labels)
    z, y, x = profiles.unbind(2)
    weight = z[..., None, None] * y[..., None, :, None] * x[..., None, None, :]
    weight = weight.flatten(2)  # (B, N, m^3)
    kept = torch.log1p(-weight.clamp(max=1 - 2**-24))  # no logarithm of 0
    order = torch.arange(coords.shape[1], device=coords.device)
    later = (order[None] > order[:, None]).to(kept.dtype)
    stamps = (weight * torch.exp(later @ kept) * logits[..., None]).sum(1)
    return (masks.flatten(1) * torch.exp(kept.sum(1)) + stamps).view_as(masks)


def export(model: Sam3D, folder: Path, *, tolerance: float = TOLERANCE, **facts: Any) -> Path:
    """Write both ONNX files and export.json; all three, or none.

    Args:
        model: The network, on the CPU.
        folder: The folder to write to; created if it does not exist.
        tolerance: Largest difference to PyTorch, relative to the norm.
        facts: Further entries of export.json.

    Returns:
        The path of export.json.

    Raises:
        OnnxError: a package is missing, a file's outputs differ from PyTorch's, or the folder holds
            files of another origin.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needed(package)
    require_own_files(folder)
    model = model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as name:
        temporary = Path(name)
        differences: dict[str, Differences] = {}
        for file, write, compare in (
            (ENCODER, write_encoder, encoder_differences),
            (DECODER, write_decoder, decoder_differences),
        ):
            write(model, temporary / file)
            differences[file] = compare(model, temporary / file)
            require_same(file, differences[file], tolerance)
        content = {
            "network": model.config.network,
            FINGERPRINT: fingerprint(model),
            **facts,
            "config": model.config.to_dict(),
            "opset": OPSET,
            "files": {file: signature(temporary / file) for file in differences},
            "relative_difference_to_pytorch": differences,
        }
        (temporary / FACTS).write_text(json.dumps(content, indent=1))
        for file in (ENCODER, DECODER, FACTS):
            os.replace(temporary / file, folder / file)
    return folder / FACTS


def write_encoder(model: Sam3D, path: Path) -> None:
    """Write the image encoder of ``model`` to ``path``."""
    _write(
        model.image_encoder,
        path,
        _image(model, 2),
        {"image": ("batch",)},
        ("image_embedding",),
        model,
    )


def write_decoder(model: Sam3D, path: Path) -> None:
    """Write prompt encoder and mask decoder of ``model`` to ``path``."""
    axes = {
        "image_embedding": ("batch",),
        "point_coords": ("batch", "clicks"),
        "point_labels": ("batch", "clicks"),
        "mask_input": ("batch",),
    }
    inputs = _prompts(model, 2, clicks=3)
    _write(PromptDecoder(model).eval(), path, inputs, axes, ("low_res_masks", "iou"), model)


def _write(
    module: nn.Module,
    path: Path,
    inputs: Inputs,
    axes: Mapping[str, tuple[str, ...]],
    outputs: Sequence[str],
    model: Sam3D,
) -> None:
    """Export a module; ``axes`` names the leading axes of each input, which may have any length."""
    if model.config.appends_image:
        raise OnnxError(
            f"network '{model.config.network}': is refined (refine_strength "
            f"{model.config.decoder.refine_strength:g}), expected a network without refinement: "
            "ONNX files hold the refinement of the form pyramid alone.\n"
            "Export refined(model, 0), and refine where the network is used: --refine."
        )
    dims = {name: torch.export.Dim(name) for names in axes.values() for name in names}
    shapes = {
        name: {axis: dims[label] for axis, label in enumerate(labels)}
        for name, labels in axes.items()
    }
    # The exporter's reshapes fail on the strides of fused attention, so it is turned off.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            module,
            tuple(inputs[name] for name in axes),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(axes),
            output_names=list(outputs),
            dynamic_shapes=tuple(shapes[name] for name in axes),
            external_data=False,
            verbose=False,
        )
    program.model.metadata_props[FINGERPRINT] = fingerprint(model)
    program.save(os.fspath(path))


def encoder_differences(model: Sam3D, path: Path) -> Differences:
    """Compare the file with PyTorch on random images."""

    def encode(image: Tensor) -> tuple[Tensor]:
        return (model.image_encoder(image),)

    cases = {f"batch {batch}": _image(model, batch, seed=batch) for batch in BATCHES}
    return differences_of(path, encode, cases)


def decoder_differences(model: Sam3D, path: Path) -> Differences:
    """Compare the file with PyTorch on random prompts on random images."""

    def decode(mask_input: Tensor, **prompts: Tensor) -> tuple[Tensor, Tensor]:
        dense_pe = model.prompt_encoder.get_dense_pe()
        return decode_points(model, **prompts, low_res_masks=mask_input, dense_pe=dense_pe)

    cases = {
        f"batch {batch}, clicks {clicks}": _prompts(model, batch, clicks, seed=10 * batch + clicks)
        for batch in BATCHES
        for clicks in CLICKS
    }
    return differences_of(path, decode, cases)


@torch.inference_mode()
def differences_of(
    path: Path, reference: Callable[..., tuple[Tensor, ...]], cases: Mapping[str, Inputs]
) -> Differences:
    """Run a file and its reference on the same inputs.

    Args:
        path: The ONNX file.
        reference: Takes the inputs by name; returns the outputs in the order of the file's.
        cases: Inputs by the name of the case.

    Returns:
        For each case and output, the norm of the difference over the norm of the reference.
    """
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]
    differences: Differences = {}
    for case, inputs in cases.items():
        found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        pairs = zip(map(torch.from_numpy, found), reference(**inputs), strict=True)
        differences[case] = {
            name: _difference(own, expected)
            for name, (own, expected) in zip(names, pairs, strict=True)
        }
    return differences


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).norm() / expected.norm())


def require_same(name: str, differences: Differences, tolerance: float) -> None:
    """Raise `OnnxError` where a file differs from PyTorch by more than ``tolerance``."""
    worst, case, output = max(
        (value if value == value else float("inf"), case, output)  # NaN counts as infinite
        for case, of_case in differences.items()
        for output, value in of_case.items()
    )
    if worst > tolerance:
        raise OnnxError(
            f"{name}: {output} ({case}) differs from PyTorch's by {worst:.1e} of its norm, "
            f"expected at most {tolerance:.0e}; nothing was written.\n"
            "Rounding alone can cause this where attention logits reach hundreds, as in networks "
            "early in training. If the difference is acceptable, raise --tolerance."
        )


def signature(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return name, shape and type of a file's inputs and outputs; a named axis has any length."""
    session = open_session(path)
    sides = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    return {
        side: {tensor.name: {"shape": tensor.shape, "type": tensor.type} for tensor in tensors}
        for side, tensors in sides.items()
    }


def _image(model: Sam3D, batch: int, seed: int = 0) -> Inputs:
    """Return volumes of noise (batch, 1, S, S, S), normalised as crops are."""
    size = model.config.encoder.img_size
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.randn(batch, 1, size, size, size, generator=generator)}


@torch.no_grad()
def _prompts(model: Sam3D, batch: int, clicks: int, seed: int = 0) -> Inputs:
    """Return the decoder's inputs: the embedding of a random volume, random clicks and logits.

    In networks that take boxes the first sample has one.
    """
    generator = torch.Generator().manual_seed(seed)
    size, cells = model.config.encoder.img_size, model.prompt_encoder.low_res_size
    coords = torch.rand(batch, clicks, 3, generator=generator) * (size - 1)
    labels = torch.arange(1, 1 + batch * clicks).view(batch, clicks) % 3 - 1
    if model.config.prompt.boxes:
        boxes = size * torch.tensor([[0.2, 0.3, 0.1], [0.6, 0.8, 0.7]]).expand(batch, 2, 3)
        corners, kinds = box_points(boxes, torch.arange(batch) == 0)
        coords, labels = torch.cat([corners, coords], 1), torch.cat([kinds, labels], 1)
    return {
        "image_embedding": model.image_encoder(_image(model, batch, seed)["image"]),
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": 5 * torch.randn(batch, 1, cells, cells, cells, generator=generator),
    }


def _tolerance(text: str) -> float:
    """Parse ``--tolerance``: with NaN or infinity no difference would be refused."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0 and below 1")
    return value


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="checkpoint file of the network")
    add("--network", help="name of the network in a released file, such as vit_b_ori")
    add("--teacher", type=Path, help="take prompt encoder and mask decoder from this file")
    add("--out", type=Path, required=True, help="folder to write to; created if need be")
    add(
        "--tolerance",
        type=_tolerance,
        default=TOLERANCE,
        help="largest difference to PyTorch, relative to the norm (default: %(default)g)",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Path:
    """Export the network that ``args`` name; return the path of export.json."""
    checkpoint = open_checkpoint(args.checkpoint)
    if args.teacher is None:
        require_decoder(checkpoint)
    model = build_from_checkpoint(checkpoint, args.network, args.teacher)
    return export(
        model,
        args.out,
        tolerance=args.tolerance,
        checkpoint=args.checkpoint.name,
        crop_rule=checkpoint.facts.get("crop_rule"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    # torch.onnx warns that torchvision is absent, which is not needed here.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        path = run(args)
        content = read_facts(path)
    except (CheckpointError, OnnxError, OSError) as error:
        print(_printable(str(error)), file=sys.stderr)
        return 1
    for file, cases in content["relative_difference_to_pytorch"].items():
        worst = max(value for case in cases.values() for value in case.values())
        print(f"{path.parent / file}: differs from PyTorch by at most {worst:.1e} of the norm")
    return 0


def _printable(text: str) -> str:
    """Return a text whose characters, of a file's name for example, cannot act on a terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


if __name__ == "__main__":
    sys.exit(main())
