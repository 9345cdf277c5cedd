"""Fill a model with fixed pseudo-random weights that depend only on each tensor's name and shape.

Two implementations of one architecture that use the same state-dict keys get the same weights, so
their outputs can be compared without a released checkpoint. NumPy's RandomState stream is frozen by
its compatibility policy, so the values are the same on every machine and version.
"""

import zlib

import numpy as np
import torch

#: (suffix of the key, scale, offset); the first match wins.
_RULES = (
    ("positional_encoding_gaussian_matrix", 1.0, 0.0),
    ("pos_embed", 0.5, 0.0),
    ("rel_pos_d", 0.2, 0.0),
    ("rel_pos_h", 0.2, 0.0),
    ("rel_pos_w", 0.2, 0.0),
)


def values_for(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return a tensor's float32 values: about unit gain for weights, 1 + noise for norm scales."""
    stream = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    noise = stream.standard_normal(shape).astype(np.float32)
    for suffix, scale, offset in _RULES:
        if name.endswith(suffix):
            return offset + scale * noise
    if len(shape) == 1:
        return (1.0 if name.endswith("weight") else 0.0) + 0.1 * noise
    if len(shape) == 2 and ("embed" in name or "token" in name):
        return 0.5 * noise
    fan_in = int(np.prod(shape[1:]))
    return noise / np.sqrt(fan_in)


def fill(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Overwrite every entry of `module.state_dict()` in place and return the module."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(torch.from_numpy(values_for(name, tuple(tensor.shape), seed)))
    return module


def volume(seed: int = 0, shape: tuple[int, ...] = (1, 1, 128, 128, 128)) -> torch.Tensor:
    """Return a fixed input volume: smooth waves plus noise, about zero mean, unit variance."""
    stream = np.random.RandomState(1000 + seed)
    axes = np.meshgrid(*(np.linspace(0, 1, n) for n in shape[-3:]), indexing="ij")
    waves = sum(
        np.sin(2 * np.pi * (f[0] * axes[0] + f[1] * axes[1] + f[2] * axes[2]) + f[3])
        for f in stream.uniform(0.5, 4.0, size=(6, 4))
    )
    out = waves / waves.std() + 0.3 * stream.standard_normal(shape[-3:])
    return torch.from_numpy(np.array(np.broadcast_to(out, shape), dtype=np.float32))
