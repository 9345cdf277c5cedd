"""The networks that benchmarks/latency.py times: ours in every engine, and MedIM's SAM-Med3D.

A network has the same random weights in every engine and precision; MedIM's gets the teacher's. A
rival returns, for a part's name and prompts, a call without arguments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything import (
    InferenceEngine,
    Sam3D,
    autocast,
    sam_model_registry3D,
    upsample,
)
from segment_anything.decoding import decode_points

PARTS = ("encoder", "first click", "further click")
SIZE = 128  # voxels along each axis of a crop
TEACHER = "vit_b_ori"
#: Standard deviation of the relative position tables, which are zero in a new network.
RELATIVE_SCALE = 0.2


class Prompts(NamedTuple):
    """The inputs of one call, in CPU memory."""

    images: Tensor  # (B, 1, 128, 128, 128)
    coords: Tensor  # (B, 1, 3)
    labels: Tensor  # (B, 1)
    low_res_masks: Tensor  # (B, 1, 32, 32, 32) logits, for a further click
    no_masks: Tensor  # zeros of the same shape, for the first click


@dataclass(frozen=True)
class Rival:
    """A network ready to be timed."""

    name: str
    network: str  # its name in the registry
    precision: str
    work: Callable[[str, Prompts], Callable[[], Tensor]]  # (part, prompts) -> a call of the part
    is_medim: bool = False


def prompts_for(batch: int) -> Prompts:
    """Return made-up prompts; sample number n is the same in every batch size."""
    generators = [torch.Generator().manual_seed(sample) for sample in range(batch)]
    images = torch.cat([waves(generator) for generator in generators])
    coords = torch.cat([20 + 90 * torch.rand(1, 1, 3, generator=g) for g in generators])
    coarse = torch.cat([torch.randn(1, 1, 8, 8, 8, generator=g) for g in generators])
    masks = 4 * F.interpolate(coarse, scale_factor=4.0)
    labels = torch.ones(batch, 1, dtype=torch.long)
    return Prompts(images, coords, labels, masks, torch.zeros_like(masks))


def fitted(masks: Tensor, model: Sam3D) -> Tensor:
    """Return mask prompts of the size that a network has."""
    return F.interpolate(masks, size=(model.config.low_res_size,) * 3)


def waves(generator: torch.Generator) -> Tensor:
    """Return a volume (1, 1, 128, 128, 128) of smooth waves and noise, mean 0, deviation 1."""
    coarse = torch.randn(1, 1, 12, 12, 12, generator=generator)
    volume = F.interpolate(coarse, size=(SIZE,) * 3, mode="trilinear", align_corners=False)
    volume = volume + 0.3 * torch.randn(volume.shape, generator=generator)
    return (volume - volume.mean()) / volume.std()


@cache
def network(name: str) -> Sam3D:
    """Return a network with random weights, its relative position tables included."""
    torch.manual_seed(0)
    model = sam_model_registry3D[name]().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "rel_pos" in key:
                parameter.copy_(RELATIVE_SCALE * torch.randn_like(parameter))
    return model


def our_rivals(
    name: str, device: torch.device, precisions: Sequence[str], engines: Sequence[str]
) -> list[Rival]:
    """Return one of our networks in all given precisions and engines."""
    return [
        Rival(
            f"{name}, {precision}, {engine}",
            name,
            precision,
            _our_work(name, device, precision, engine),
        )
        for precision in precisions
        for engine in engines
    ]


def _our_work(
    name: str, device: torch.device, precision: str, engine_name: str
) -> Callable[[str, Prompts], Callable[[], Tensor]]:
    engine = InferenceEngine(network(name), device, getattr(torch, precision), engine_name)

    def click(embedding: Tensor, prompts: Prompts, masks: Tensor) -> Tensor:
        masks = fitted(masks, engine.model)
        low_res, _ = engine.decode(embedding, prompts.coords, prompts.labels, masks)
        return engine.upsample(low_res, SIZE)

    def work(part: str, prompts: Prompts) -> Callable[[], Tensor]:
        if part == "encoder":
            return lambda: engine.encode(prompts.images)
        if part == "first click":
            return lambda: click(engine.encode(prompts.images), prompts, prompts.no_masks)
        embedding = engine.encode(prompts.images)
        return lambda: click(embedding, prompts, prompts.low_res_masks)

    return work


def medim_rival(device: torch.device, precision: str = "float32") -> Rival:
    """Return MedIM's SAM-Med3D with the weights of our teacher, called as MedIM's users call it."""
    model, dtype = medim_network().to(device), getattr(torch, precision)

    @torch.inference_mode()
    def encode(prompts: Prompts) -> Tensor:
        with autocast(device, dtype):
            return model.image_encoder(prompts.images.to(device))

    @torch.inference_mode()
    def click(embedding: Tensor, prompts: Prompts, masks: Tensor) -> Tensor:
        points = prompts.coords.to(device), prompts.labels.to(device)
        with autocast(device, dtype):
            sparse, dense = model.prompt_encoder(points=points, boxes=None, masks=masks.to(device))
            low_res, _ = model.mask_decoder(
                image_embeddings=embedding,
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
        return F.interpolate(low_res, size=(SIZE,) * 3, mode="trilinear", align_corners=False)

    def work(part: str, prompts: Prompts) -> Callable[[], Tensor]:
        if part == "encoder":
            return lambda: encode(prompts)
        if part == "first click":
            return lambda: click(encode(prompts), prompts, prompts.no_masks)
        embedding = encode(prompts)
        return lambda: click(embedding, prompts, prompts.low_res_masks)

    return Rival(f"MedIM's SAM-Med3D, {precision}", TEACHER, precision, work, is_medim=True)


@cache
def medim_network() -> torch.nn.Module:
    """Return MedIM's SAM-Med3D on the CPU, with the weights of our teacher."""
    import medim

    model = medim.create_model("SAM-Med3D", pretrained=False).eval()
    model.load_state_dict(network(TEACHER).state_dict(), strict=True)
    return model


def reference_outputs(name: str, parts: Sequence[str], medim: bool) -> dict[str, Tensor]:
    """Return the outputs of a network's parts for the first sample, computed without our engines.

    With ``medim``, the reference of the teacher is MedIM's output. All other references are
    computed by the network itself in float64.
    """
    prompts = prompts_for(1)
    if medim and name == TEACHER:
        rival = medim_rival(torch.device("cpu"))
        return {part: rival.work(part, prompts)() for part in parts}
    model = sam_model_registry3D[name]().eval().double()
    model.load_state_dict(network(name).state_dict())
    masks = {"first click": prompts.no_masks, "further click": prompts.low_res_masks}
    with torch.inference_mode():
        embedding = model.image_encoder(prompts.images.double())
        answers = {"encoder": embedding}
        for part, mask in masks.items():
            points = prompts.coords.double(), prompts.labels
            dense_pe = model.prompt_encoder.get_dense_pe()
            mask = fitted(mask, model)
            low_res, _ = decode_points(model, embedding, *points, mask.double(), dense_pe)
            answers[part] = upsample(low_res, SIZE)
    return {part: answers[part] for part in parts}
