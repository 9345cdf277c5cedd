"""A network's configuration: four frozen dataclasses that JSON stores without loss.

The defaults are those of the released SAM-Med3D teacher. A checkpoint stores
``SamConfig.to_dict()``, and ``SamConfig.from_dict`` rebuilds the configuration from it.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CELLS_PER_TOKEN = 4  # cells along each axis of a token
IMAGE_CELLS = 8  # averages of the image in a cell, of 2^3 voxels each in a pyramid's embedding
IMAGE_CHANS = IMAGE_CELLS * CELLS_PER_TOKEN**3  # of an embedding that holds the image, at its end
MOST_TOKENS = 16  # along each axis of the grid; attention's memory grows with the sixth power
MOST_WEIGHTS = 5 * 10**9  # of a whole network, 20 GB in float32: ten times the largest ViT of SAM
MOST_BLOCKS = 64
NAME_LENGTH = 100


class ConfigError(ValueError):
    """A network configuration that cannot be built."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The image encoder: a plain vision transformer over cubic patches.

    Raises:
        ConfigError: the fields do not fit each other, or one is out of its range.
    """

    img_size: int = 128  # voxels along each axis of the cubic volume
    patch_size: int = 16  # voxels along each axis of a patch
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    out_chans: int = 384  # width of the prompt encoder and mask decoder as well
    window_size: int = 14  # tokens; blocks not in global_attn_indexes pad the grid to it; 0 = none
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    attention_free_blocks: tuple[int, ...] = ()
    mlp_residual: Literal["input", "normalised"] = "input"  # where the MLP's residual starts
    stem: Literal["patch", "conv"] = "patch"
    neck_kernel: int = 3
    relative_terms: Literal["released", "textbook"] = "released"  # see attention3D.py
    detail_chans: int = 0  # features of each cell for the mask decoder; 0 = none
    detail: Literal["stem", "pyramid"] = "stem"  # of the stem alone, or with its surroundings

    def __post_init__(self) -> None:
        _require_types(self)
        _require_range(self, "img_size", 1, 1024)
        _require_range(self, "patch_size", 1, 256)
        _require_range(self, "embed_dim", 1, 8192)
        _require_range(self, "depth", 0, MOST_BLOCKS)
        _require_range(self, "num_heads", 1, 256)
        _require_range(self, "mlp_ratio", 1 / self.embed_dim, 64)
        _require_range(self, "out_chans", 1, 8192)
        _require_range(self, "window_size", 0, 4 * MOST_TOKENS)
        _require_range(self, "neck_kernel", 1, 15)
        _require_range(self, "detail_chans", 0, 1024)
        _require_range(self, "global_attn_indexes", 0, MOST_BLOCKS - 1)
        _require(self.img_size % self.patch_size == 0, "img_size is no multiple of patch_size")
        _require(
            self.grid_size <= MOST_TOKENS,
            f"img_size / patch_size is {self.grid_size}, expected at most {MOST_TOKENS}",
        )
        _require(self.embed_dim % self.num_heads == 0, "embed_dim is no multiple of num_heads")
        _require(self.stem == "patch" or self.patch_size == 16, "the conv stem needs patch_size 16")
        blocks = range(self.depth)
        _require(
            set(self.attention_free_blocks) <= set(blocks),
            f"attention_free_blocks are {self.attention_free_blocks}, expected 0 ... depth - 1",
        )
        _require(int(self.embed_dim * self.mlp_ratio) > 0, "embed_dim * mlp_ratio is below 1")
        _require(self.neck_kernel % 2 == 1, "neck_kernel is not odd")
        _require(
            self.relative_terms == "released" or self.window_size <= self.grid_size,
            "textbook relative_terms are not supported with windows: set window_size to 0",
        )
        _require(self.detail_chans == 0 or self.stem == "conv", "detail_chans need the conv stem")
        _require(
            self.detail == "stem" or self.detail_chans > 0, "detail pyramid needs detail_chans"
        )
        _require(
            self.window_size == 0 or self.window_size >= self.grid_size,
            f"window_size is {self.window_size}, less than the token grid of {self.grid_size}; "
            "windows that split the grid are not supported",
        )

    @property
    def grid_size(self) -> int:
        """Tokens along each axis."""
        return self.img_size // self.patch_size

    @property
    def cells_size(self) -> int:
        """Cells along each axis of the crop."""
        return self.grid_size * CELLS_PER_TOKEN

    @property
    def learnt_chans(self) -> int:
        """Channels of the image embedding that are learnt: all but the image in a pyramid's."""
        return self.out_chans + self.detail_chans * CELLS_PER_TOKEN**3

    @property
    def embedding_chans(self) -> int:
        """Channels of the image embedding (E): the neck's, and those of the cells, folded."""
        return self.learnt_chans + (IMAGE_CHANS if self.detail == "pyramid" else 0)


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """The prompt encoder, and the choice of the clicks that are decoded.

    Raises:
        ConfigError: a field is out of its range.
    """

    # Axis order of the token grid's positions. (1, 0, 2) is the released order; (0, 1, 2) is the
    # order of the clicks' coordinates.
    dense_pe_axes: tuple[int, int, int] = (1, 0, 2)
    click_stamp_sigma: float = 0.0  # width, in low-resolution cells, of a click's stamp; 0 = off
    click_stamp_logit: float = 8.0
    click_memory: Literal["last", "all"] = "last"  # clicks that are decoded at each step
    click_diffusion: bool = False  # maps of clicks diffused along the image's edges
    click_likeness: bool = False  # maps of each cell's likeness to the clicked cells
    boxes: bool = False  # a box is given by two corners, and by a map of the cells

    def __post_init__(self) -> None:
        _require_types(self)
        _require(
            sorted(self.dense_pe_axes) == [0, 1, 2], "dense_pe_axes is no permutation of 0, 1, 2"
        )
        _require_range(self, "click_stamp_sigma", 0, 1000)
        _require_range(self, "click_stamp_logit", -1000, 1000)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The mask decoder and its two-way transformer.

    Raises:
        ConfigError: a field is out of its range.
    """

    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    form: Literal["sam", "pyramid"] = "sam"  # pyramid: prompts at every scale, finer masks
    refine_strength: float = 0.0  # weight of the mask in its guided diffusion; 0 = none

    def __post_init__(self) -> None:
        _require_types(self)
        _require_range(self, "refine_strength", 0, 1000)
        _require_range(self, "depth", 1, MOST_BLOCKS)
        _require_range(self, "num_heads", 1, 256)
        _require_range(self, "mlp_dim", 1, 65536)


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """A whole network. ``network`` is its name in `sam_model_registry3D`.

    Raises:
        ConfigError: a field is of a wrong type, the widths of the parts do not fit each other, or
            the network would be too large for any memory.
    """

    network: str
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        _require_types(self)
        _require(
            0 < len(self.network) <= NAME_LENGTH and self.network.isprintable(),
            f"network is {self.network[:NAME_LENGTH]!r}, not a name",
        )
        width = self.encoder.out_chans
        _require(
            width % 24 == 0 and width % (2 * self.decoder.num_heads) == 0,
            f"out_chans is {width}, expected a multiple of 24 and of twice the decoder's num_heads",
        )
        is_pyramid = self.decoder.form == "pyramid"
        _require(
            is_pyramid == (self.encoder.detail == "pyramid"),
            "decoder.form pyramid and encoder.detail pyramid need each other",
        )
        _require(
            not is_pyramid or self.encoder.grid_size >= 2,
            "decoder.form pyramid needs a grid of at least 2 tokens along each axis",
        )
        _require(
            not is_pyramid or self.prompt.click_stamp_sigma == 0,
            "decoder.form pyramid has maps of its own: click_stamp_sigma must be 0",
        )
        _require(
            is_pyramid or not (self.prompt.click_diffusion or self.prompt.click_likeness),
            "click_diffusion and click_likeness need decoder.form pyramid",
        )
        _require(is_pyramid or not self.prompt.boxes, "prompt.boxes needs decoder.form pyramid")
        _require(
            self.rough_weights <= MOST_WEIGHTS,
            f"the network would have about {self.rough_weights:.1g} weights, expected at most "
            f"{MOST_WEIGHTS:.1g}",
        )

    @property
    def appends_image(self) -> bool:
        """Whether the image is appended to the encoder's embedding, to refine masks of form sam."""
        return self.decoder.form == "sam" and self.decoder.refine_strength > 0

    @property
    def embedding_chans(self) -> int:
        """Channels of the image embedding (E) with those of an image that is appended to it."""
        return self.encoder.embedding_chans + (IMAGE_CHANS if self.appends_image else 0)

    @property
    def low_res_size(self) -> int:
        """Cells along each axis of a low-resolution mask: m, where shapes are named."""
        is_fine = self.decoder.form == "pyramid" or self.appends_image
        return self.encoder.cells_size * (2 if is_fine else 1)

    @property
    def given_clicks(self) -> Literal["last", "all"]:
        """The clicks that `decode_points` takes: those that are decoded, or all to be fixed."""
        return "all" if self.appends_image else self.prompt.click_memory

    def require_buildable(self) -> None:
        """Refuse the configuration of a network that only `refined` makes, from a built one.

        Raises:
            ConfigError: the masks of a network of the form sam are to be refined.
        """
        _require(
            not self.appends_image,
            "refine_strength needs decoder.form pyramid in a network that is built; other networks "
            "are refined where they are used: with --refine, or refined(model, strength)",
        )

    @property
    def rough_weights(self) -> float:
        """About how many weights the network has: those of its large matrices and tables."""
        encoder, decoder = self.encoder, self.decoder
        dim, width = encoder.embed_dim, encoder.out_chans
        stem = dim * (encoder.patch_size**3 + encoder.grid_size**3)
        blocks = encoder.depth * dim**2 * (4 + 2 * encoder.mlp_ratio)
        neck = width * (dim + width * encoder.neck_kernel**3)
        layers = decoder.depth * width * (10 * width + 2 * decoder.mlp_dim)
        return float(stem + blocks + neck + layers + 27 * encoder.detail_chans**2)

    def to_dict(self) -> dict[str, Any]:
        """Return dicts, lists, strings and numbers, as JSON and checkpoints hold them."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SamConfig":
        """Rebuild a configuration from the output of `to_dict`; missing fields get defaults.

        Raises:
            ConfigError: a field is unknown, of a wrong type, or out of its range, or no network can
                be built with them.
        """
        config = _from_dict(cls, values, where="config")
        config.require_buildable()
        return config


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_range(config: Any, name: str, low: float, high: float) -> None:
    """Refuse a number, or one of several, outside of ``low`` to ``high``; NaN lies outside."""
    value = getattr(config, name)
    for number in value if isinstance(value, tuple) else (value,):
        _require(low <= number <= high, f"{name} is {_short(number)}, not {low:g} to {high:g}")


def _require_types(config: Any) -> None:
    for name, expected in typing.get_type_hints(type(config)).items():
        _require_type(expected, getattr(config, name), where=name)


def _short(value: Any) -> str:
    """Return the start of a value's repr, for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _require_type(expected: Any, value: Any, *, where: str) -> None:
    """Refuse values of a wrong type, such as words for numbers and fractions for counts."""
    origin, allowed = typing.get_origin(expected), typing.get_args(expected)
    if expected is bool:
        _require(isinstance(value, bool), f"{where} is {_short(value)}, not true or false")
    elif expected in (int, float):
        numbers = (int, float) if expected is float else int
        _require(
            isinstance(value, numbers) and not isinstance(value, bool),
            f"{where} is {_short(value)}, not a {'whole ' if expected is int else ''}number",
        )
    elif origin is Literal:
        _require(
            isinstance(value, str) and value in allowed,
            f"{where} is {_short(value)}, expected one of {', '.join(allowed)}",
        )
    elif origin is tuple:
        _require(
            isinstance(value, tuple) and len(value) <= MOST_BLOCKS,
            f"{where} is {_short(value)}, not a list of at most {MOST_BLOCKS} numbers",
        )
        for entry in value:
            _require_type(int, entry, where=where)
    else:
        _require(
            isinstance(value, expected), f"{where} is {_short(value)}, not a {expected.__name__}"
        )


def _from_dict(cls: type, values: Any, *, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is a {type(values).__name__}, not a table of fields")
    types = typing.get_type_hints(cls)
    unknown = sorted(_short(name) for name in values if name not in types)
    if unknown:
        raise ConfigError(
            f"{where} has unknown fields [{', '.join(unknown[:8])}]; {cls.__name__} has "
            f"{list(types)}"
        )
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
