"""Networks with the weights of ``fixed_weights.py``, built once for all tests; the golden data."""

import json
from functools import cache
from pathlib import Path

import fixed_weights
import numpy as np
import torch
from torch import Tensor

from segment_anything import Sam3D, sam_model_registry3D
from segment_anything.modeling import EncoderOutput

DATA = Path(__file__).parent / "data"
NETWORKS = ("teacher", "student")
DECODER_CASES = ("points_mask", "points", "mask", "multimask")
STATE_DICTS = json.loads((DATA / "state_dict.json").read_text())


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "golden_seed0.npz") as arrays:
        return dict(arrays)


@cache
def network(name: str) -> Sam3D:
    """Return the filled teacher, or the filled student encoder with the teacher's other parts."""
    if name == "teacher":
        return fixed_weights.fill(sam_model_registry3D["vit_b_ori"]()).eval()
    student = sam_model_registry3D["fastsam3d"]()
    fixed_weights.fill(student.image_encoder)
    student.prompt_encoder = network("teacher").prompt_encoder
    student.mask_decoder = network("teacher").mask_decoder
    return student.eval()


@cache
@torch.no_grad()
def encoded(name: str) -> EncoderOutput:
    return network(name).image_encoder.forward_features(fixed_weights.volume(0))


@torch.no_grad()
def embed_prompts(prompt_encoder: torch.nn.Module, case: str) -> tuple[Tensor, Tensor]:
    """Return sparse and dense embeddings of the golden prompts."""
    points = tuple(torch.from_numpy(golden()[name]) for name in ("points", "labels"))
    masks = torch.from_numpy(golden()["low_res_in"])
    return prompt_encoder(
        points=None if case == "mask" else points,
        boxes=None,
        masks=None if case == "points" else masks,
    )


@torch.no_grad()
def decode(model: torch.nn.Module, embedding: Tensor, case: str) -> tuple[Tensor, Tensor]:
    """Return low-resolution logits and IoU of a decoder case."""
    sparse, dense = embed_prompts(model.prompt_encoder, case)
    return model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=case == "multimask",
    )


def relative_error(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
