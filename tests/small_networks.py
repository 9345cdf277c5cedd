"""Networks small enough for tests: 32³ crops, random weights, teacher and student files."""

from pathlib import Path

import torch

from segment_anything import (
    DecoderConfig,
    EncoderConfig,
    PromptConfig,
    Sam3D,
    SamConfig,
    build_sam3D,
    checkpoint_payload,
    student_payload,
)
from utils.volumes.geometry import CropRule

RULE = CropRule(size=32, spacing_mm=1.0)


def small_config(**encoder) -> SamConfig:
    """32³ input, 4³ tokens, 16³ low-resolution masks."""
    shape = {
        "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2,
        "out_chans": 48, "window_size": 0, "neck_kernel": 1,
    }  # fmt: skip
    return SamConfig(
        network="tiny",
        encoder=EncoderConfig(**shape | encoder),
        prompt=PromptConfig(dense_pe_axes=(0, 1, 2), click_stamp_sigma=1.0, click_memory="all"),
        decoder=DecoderConfig(mlp_dim=32),
    )


def small_sam(seed: int = 0, **encoder) -> Sam3D:
    torch.manual_seed(seed)
    return build_sam3D(small_config(**encoder))


def small_student(seed: int = 1) -> Sam3D:
    return small_sam(seed, attention_free_blocks=(0,), mlp_residual="normalised")


def save_teacher(path: Path, seed: int = 0) -> Path:
    torch.save(checkpoint_payload(small_sam(seed), crop_rule=RULE.to_dict()), path)
    return path


def save_student(path: Path, seed: int = 1) -> Path:
    torch.save(student_payload(small_student(seed), crop_rule=RULE.to_dict()), path)
    return path
