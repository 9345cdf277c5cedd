"""What defines a network: four frozen dataclasses that travel through JSON unchanged.

The defaults are the released SAM-Med3D teacher's. A checkpoint stores ``SamConfig.to_dict()``, and
a network is rebuilt from it with ``SamConfig.from_dict``; nothing about a network is retyped.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CELLS_PER_TOKEN = 4  # low-resolution mask cells along an axis of a token


class ConfigError(ValueError):
    """A network configuration that cannot be built."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The image encoder: a plain vision transformer over cubic patches."""

    img_size: int = 128  # voxels along each axis of the cubic volume
    patch_size: int = 16  # voxels along each axis of a patch
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    out_chans: int = 384  # width of the prompt encoder and mask decoder as well
    window_size: int = 14  # tokens; blocks outside global_attn_indexes pad to it; 0 = no windows
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    attention_free_blocks: tuple[int, ...] = ()
    mlp_residual: Literal["input", "normalised"] = "input"  # where the MLP's residual starts
    stem: Literal["patch", "conv"] = "patch"
    neck_kernel: int = 3
    relative_terms: Literal["released", "textbook"] = "released"  # see attention3D.py
    detail_chans: int = 0  # of the low-resolution grid, carried to the mask decoder; 0 = none

    def __post_init__(self) -> None:
        _require_positive(
            self, "img_size", "patch_size", "embed_dim", "num_heads", "mlp_ratio", "out_chans"
        )
        _require(self.depth >= 0 and self.detail_chans >= 0, "depth or detail_chans is negative")
        _require(self.img_size % self.patch_size == 0, "img_size is no multiple of patch_size")
        _require(self.embed_dim % self.num_heads == 0, "embed_dim is no multiple of num_heads")
        _require(self.mlp_residual in ("input", "normalised"), "mlp_residual: input, normalised")
        _require(self.stem in ("patch", "conv"), "stem: patch, conv")
        _require(self.stem == "patch" or self.patch_size == 16, "the conv stem has stride 16")
        blocks = range(self.depth)
        _require(
            set(self.attention_free_blocks) <= set(blocks), "attention_free_blocks beyond depth"
        )
        _require(self.neck_kernel % 2 == 1 and self.neck_kernel > 0, "neck_kernel is not odd")
        terms, windows = self.relative_terms, self.window_size > self.grid_size
        _require(terms in ("released", "textbook"), "relative_terms: released, textbook")
        _require(terms == "released" or not windows, "textbook terms are not built for windows")
        _require(self.detail_chans == 0 or self.stem == "conv", "detail needs the conv stem")
        _require(
            self.window_size == 0 or self.window_size >= self.grid_size,
            "window_size is smaller than the token grid; windows that split it are not built",
        )

    @property
    def grid_size(self) -> int:
        """Tokens along each axis."""
        return self.img_size // self.patch_size

    @property
    def low_res_size(self) -> int:
        """Cells along each axis of a low-resolution mask."""
        return self.grid_size * CELLS_PER_TOKEN

    @property
    def embedding_chans(self) -> int:
        """Channels of the image embedding: the neck's, and the detail folded into tokens."""
        return self.out_chans + self.detail_chans * CELLS_PER_TOKEN**3


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """The prompt encoder, and which clicks it is given."""

    # (1, 0, 2) is the released order; (0, 1, 2) agrees with the points.
    dense_pe_axes: tuple[int, int, int] = (1, 0, 2)
    click_stamp_sigma: float = 0.0  # width, in low-resolution cells, of a click's stamp; 0 = off
    click_stamp_logit: float = 8.0
    click_memory: Literal["last", "all"] = "last"  # the clicks an interaction loop feeds per step

    def __post_init__(self) -> None:
        _require(
            sorted(self.dense_pe_axes) == [0, 1, 2], "dense_pe_axes is no permutation of 0, 1, 2"
        )
        _require(self.click_stamp_sigma >= 0, "click_stamp_sigma is negative")
        _require(self.click_memory in ("last", "all"), "click_memory: last, all")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The two-way transformer of the mask decoder."""

    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048

    def __post_init__(self) -> None:
        _require_positive(self, "depth", "num_heads", "mlp_dim")


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """A whole network. ``network`` is its name in the registry."""

    network: str
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        width = self.encoder.out_chans
        _require(
            width % 24 == 0 and width % (2 * self.decoder.num_heads) == 0,
            f"out_chans is {width}, no multiple of 24 and of 2 * num_heads of the decoder",
        )

    @property
    def low_res_size(self) -> int:
        """Cells along each axis of a low-resolution mask: m, where shapes are named."""
        return self.encoder.low_res_size

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, strings and numbers: what JSON and a checkpoint hold."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SamConfig":
        """Rebuild a configuration; a field that does not exist is an error, not a default."""
        return _from_dict(cls, values, where="config")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) > 0, f"{name} is {getattr(config, name)}, not above 0")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _require_type(expected: Any, value: Any, *, where: str) -> None:
    """Refuse what JSON or a flag may bring: words for numbers, fractions for counts."""
    if expected in (int, float):
        allowed = (int, float) if expected is float else int
        _require(
            isinstance(value, allowed) and not isinstance(value, bool),
            f"{where} is {value!r}, not a {'whole ' if expected is int else ''}number",
        )
    elif typing.get_origin(expected) is tuple:
        _require(isinstance(value, tuple), f"{where} is {value!r}, not a list")
        for entry in value:
            _require_type(int, entry, where=where)


def _from_dict(cls: type, values: Any, *, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is a {type(values).__name__}, not a table of fields")
    types = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(types))
    if unknown:
        raise ConfigError(f"{where} has unknown fields {unknown}; {cls.__name__} has {list(types)}")
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(types[name]):
            value = _from_dict(types[name], value, where=f"{where}.{name}")
        value = tuple(value) if isinstance(value, list) else value
        _require_type(types[name], value, where=f"{where}.{name}")
        arguments[name] = value
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
