"""Modality, and intensities in the range that the networks are trained on: 0 to 255, background 0.

Challenge files hold CT clipped to a window, and every other modality clipped to the percentiles 0.5
and 99.5 of its voxels above 0; both are then scaled to uint8. Other images are mapped the same way.

Whether an image is CT is decided here, for prediction, preparation and training alike: by the user,
else by header or name, else by the share of voxels that look like air.
"""

import argparse
import re
from typing import NamedTuple

import numpy as np

from utils.errors import InputError

MODES = ("auto", "as-is", "hounsfield")
MODALITIES = ("ct", "mr", "pet", "us", "other")
SOFT_TISSUE = (40.0, 400.0)  # level and width in HU, the challenge's default for CT
PERCENTILES = (0.5, 99.5)
SATURATED = 0.5  # share of the body at one end of 0..255 from which a warning is due
FEW_LEVELS = 8  # of 0..255: a body that spans fewer has lost its contrast
NARROW_HU = 20.0  # CT in Hounsfield units spans more; z-scores and shares span less

#: Words of a file's or data set's name that say the modality. "t1" and "t2" may be time points.
WORDS = {
    "ct": ("ct", "cta", "ctpa", "ctv", "cbct", "cect", "ncct", "ldct", "hrct"),
    "mr": ("mr", "mri", "mra", "flair", "t1w", "t1c", "t1ce", "t1n", "t2w", "t2f", "t2star", "adc"),
    "pet": ("pet", "autopet"),
    "us": ("us", "ultrasound"),
    "other": ("microscopy", "cremi", "nucmm"),
}
MODALITY_OF = {word: modality for modality, words in WORDS.items() for word in words}

# Hounsfield units and shares of voxels, chosen on 2340 volumes made from real ones: 118 CT in HU,
# some cropped, and MR, PET and microscopy with ringing, noise, z-scores, phases or padding. Wrong
# are three CT crops without any air, and 28 of 202 MR whose background was set to -1000.
PADDING_BELOW = -1500  # lower values fill the corners around a round field of view
AIR, BETWEEN, FAT, SOFT = (-1200, -700), (-600, -250), (-150, -30), (-30, 150)
DENSER_THAN_BONE = 1500
LEAST_AIR, LEAST_AIR_WITHOUT_FAT = 2e-4, 1e-3
OFFSET = 1024  # added to Hounsfield units by some exports, so that no value is below 0
MAX_SAMPLE = 2**22  # voxels; larger volumes are sampled


class Mapped(NamedTuple):
    """An image in that range, and a description of how it got there."""

    image: np.ndarray
    done: str
    why: str = ""  # the modality, and how it was found
    hounsfield: bool = False  # values are Hounsfield units, to be clamped as in training
    warning: str = ""


def add_intensity_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose how intensities are mapped to 0..255."""
    group = parser.add_argument_group("intensities")
    group.add_argument(
        "--modality",
        choices=MODALITIES,
        help="of the images (default: as file name or header say, else CT where voxels look like "
        "air at -1000)",
    )
    ways = group.add_mutually_exclusive_group()
    ways.add_argument(
        "--intensity",
        choices=MODES,
        default="auto",
        help="auto: 0..255 stays, CT gets window 40 400, others go from their percentiles to "
        "0..255; as-is: nothing is changed; hounsfield: values are clamped to -1000..1000, for "
        "networks trained on Hounsfield units (default: auto)",
    )
    ways.add_argument(
        "--window",
        type=float,
        action=WindowAction,
        nargs=2,
        metavar=("LEVEL", "WIDTH"),
        help="map this window to 0..255 instead, such as -600 1500 for lungs",
    )


class WindowAction(argparse.Action):
    """Store level and width of a window; refuse what is not finite, and widths not above 0."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: list[float],
        option_string: str | None = None,
    ) -> None:
        level, width = values
        if not (np.isfinite(level) and 0 < width < np.inf):
            raise argparse.ArgumentError(
                self, f"found {level:g} {width:g}, expected two finite numbers, the second above 0"
            )
        setattr(namespace, self.dest, values)


def named_modality(name: str) -> str | None:
    """Return the modality that a file's or data set's name says; None where it says none.

    The name's first word counts before the others, and those only if they agree.

    >>> named_modality("CT_AMOS_0004"), named_modality("liver-mri"), named_modality("Dataset009")
    ('ct', 'mr', None)
    """
    words = [MODALITY_OF.get(word) for word in re.split(r"[\W_]+", name.lower())]
    said = {word for word in words if word}
    return words[0] or (said.pop() if len(said) == 1 else None)


def map_intensity(
    volume: np.ndarray,
    mode: str = "auto",
    window: tuple[float, float] | None = None,
    modality: str | None = None,
) -> Mapped:
    """Map a volume (D, H, W) to 0..255, unless it is in that range already.

    Args:
        mode: "auto" decides by modality and values, "as-is" changes nothing, "hounsfield" leaves
            the clamping to the network's crops.
        window: level and width that are mapped to 0..255; ``mode`` is then ignored.
        modality: one of `MODALITIES`, if it is known; otherwise the values decide.

    Raises:
        InputError: the window has no width.
    """
    if window is not None:
        return _windowed(volume, *window)
    if mode == "as-is":
        return Mapped(volume, "intensities kept")
    if mode == "hounsfield":
        return Mapped(volume, "intensities kept, clamped to -1000..1000", hounsfield=True)
    low, high = volume.min(), volume.max()
    if volume.dtype in (np.uint8, bool) or (low >= 0 and high <= 255):
        same = f"all voxels have the value {low:g}, so the network sees nothing: check the image"
        done = f"intensities kept ({low:g} to {high:g})"
        return Mapped(volume, done, warning=same if low == high else "")
    why = modality or ""
    if modality is None:
        air = air_share(volume)
        modality = "ct" if air else "other"
        why = f"ct, since {air:.1%} of the voxels look like air" if air else "values unlike CT's"
    if modality == "ct":
        return _mapped_ct(volume)._replace(why=why)
    return _by_percentiles(volume)._replace(why=why)


def holds_hounsfield(image: np.ndarray, is_ct: bool | None) -> bool:
    """Tell whether the values of an image are Hounsfield units.

    CT holds them where it has negative values: challenge files hold CT windowed to 0..255.

    Args:
        is_ct: None where it is not known; then the values decide (`looks_hounsfield`).
    """
    if is_ct is None:
        return looks_hounsfield(image)
    return bool(is_ct and image.min() < 0)


def looks_hounsfield(volume: np.ndarray) -> bool:
    """Tell whether the values of an image of unknown modality look like Hounsfield units."""
    return air_share(volume) > 0


def air_share(volume: np.ndarray) -> float:
    """Return the share of voxels that look like air in CT; 0 where the image is no CT.

    Single voxels and small shares of values below 0 are no evidence: resampling makes them in MR
    too. In CT, air is a group of its own near -1000 HU, and much of the rest is fat and soft
    tissue.
    """
    if volume.dtype.kind not in "if":
        return 0.0
    values = _sampled(volume)
    padding = values < PADDING_BELOW
    lower = np.count_nonzero(padding & (values != values.min())) / values.size
    values = values[~padding]
    if not values.size or lower > 0.02:
        return 0.0
    air, between, fat, soft = (_share(values, span) for span in (AIR, BETWEEN, FAT, SOFT))
    tissue = (fat + soft) / max(1 - air, 1e-9)
    is_body = (fat >= 0.01 and tissue >= 0.3 and air >= LEAST_AIR) or (
        tissue >= 0.6 and air >= LEAST_AIR_WITHOUT_FAT
    )
    bright = np.count_nonzero(values > DENSER_THAN_BONE) / values.size
    is_ct = is_body and air >= between / 2 and bright <= 0.05
    return air if is_ct else 0.0


def _mapped_ct(volume: np.ndarray) -> Mapped:
    """Map CT by the window of soft tissue, if its values are Hounsfield units or these + 1024."""
    values = _sampled(volume)
    bright, body = values[values > 300], values[values > _background(values)]
    if np.subtract(*np.percentile(values, PERCENTILES[::-1])) < NARROW_HU:
        mapped = _by_percentiles(volume)
        return mapped._replace(done=f"no Hounsfield units, so {mapped.done}")
    if _share(values, (-np.inf, -200)) >= 1e-3 or _share(values, (-np.inf, 0)) >= 1e-2:
        return _windowed(volume, *SOFT_TISSUE)
    if bright.size >= 0.01 * values.size and _share(bright, (OFFSET - 100, OFFSET + 200)) >= 0.4:
        mapped = _windowed(volume, SOFT_TISSUE[0] + OFFSET, SOFT_TISSUE[1], air=OFFSET - 500)
        return mapped._replace(done=f"{mapped.done}, since {OFFSET} is added to Hounsfield units")
    if not body.size or np.median(body) <= SOFT_TISSUE[0] + SOFT_TISSUE[1] / 2:
        return _windowed(volume, *SOFT_TISSUE)
    mapped = _by_percentiles(volume)
    return mapped._replace(done=f"no Hounsfield units, so {mapped.done}")


def _by_percentiles(volume: np.ndarray) -> Mapped:
    """Map the percentiles of the voxels above 0; of all but 0 where many are below, as z-scores."""
    values = _sampled(volume)
    padded = _is_padded(values)
    values = values[values != values.min()] if padded else values
    signed = volume.max() > 0 and _share(values, (-np.inf, 0)) >= 0.1
    body = volume != 0 if signed else volume > 0
    if padded and signed:
        body &= volume != volume.min()
    known = volume[body]
    low, high = np.percentile(known, PERCENTILES) if known.size else (volume.min(), volume.max())
    low = volume.min() if low == high else low  # a body of one value stands out from the rest
    which = "voxels other than 0" if signed else "voxels > 0"
    done = f"percentiles {PERCENTILES[0]} and {PERCENTILES[1]} of {which}"
    image = _stretched(volume, low, high)
    body = body if signed else volume > _background(values)
    return Mapped(
        image, f"{done} ({low:g} to {high:g}) to 0..255", warning=_saturation(image, body)
    )


def _is_padded(values: np.ndarray) -> bool:
    """Tell whether a negative value that lies far below all others fills a part of the image."""
    low = values.min()
    rest = values[values != low]
    if low >= 0 or rest.size == values.size - 1 or not rest.size:
        return False
    span = np.subtract(*np.percentile(rest, PERCENTILES[::-1]))
    return bool(np.percentile(rest, PERCENTILES[0]) - low > span)


def _windowed(
    volume: np.ndarray, level: float, width: float, *, air: float | None = None
) -> Mapped:
    """Map a window.

    Args:
        air: values up to this are no part of the body; by default `_background`.
    """
    if not (np.isfinite(level) and 0 < width < np.inf):
        raise InputError(
            f"window level {level:g}, width {width:g}: expected a width above 0, such as 40 400 "
            "for soft tissue or -600 1500 for lungs."
        )
    air = _background(_sampled(volume)) if air is None else air
    low, high = level - width / 2, level + width / 2
    image = _stretched(volume, low, high)
    done = f"window level {level:g}, width {width:g} to 0..255"
    return Mapped(image, done, warning=_saturation(image, volume > air))


def _stretched(volume: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale to uint8, ``low`` to 0 and ``high`` to 255; plane by plane, which saves memory."""
    factor = 255 / (high - low) if high > low else 0.0
    out = np.empty(volume.shape, np.uint8)
    for plane, mapped in zip(volume, out, strict=True):
        mapped[...] = np.rint(np.clip((plane.astype(np.float64) - low) * factor, 0, 255))
    return out


def _saturation(image: np.ndarray, body: np.ndarray) -> str:
    """Return a warning if more than half of the body's voxels have the value 0, or 255."""
    body = body if body.any() else np.full(image.shape, True)
    size = np.count_nonzero(body)
    for end in (0, 255):
        share = np.count_nonzero((image == end) & body) / size
        if share > SATURATED:
            return (
                f"{share:.0%} of the body is mapped to {end}, so no structure is left in it. "
                "Give --modality, --window LEVEL WIDTH or --intensity as-is if that is wrong."
            )
    shown = _sampled(image)[_sampled(body)]
    if shown.size and np.subtract(*np.percentile(shown, PERCENTILES[::-1])) < FEW_LEVELS:
        return (
            f"the body is mapped to {shown.min()} to {shown.max()} of 0 to 255, so the network "
            "sees hardly any contrast. Give --modality, --window LEVEL WIDTH or --intensity as-is "
            "if that is wrong."
        )
    return ""


def _background(values: np.ndarray) -> float:
    """Return the value up to which voxels are no part of the body.

    In CT with air this is -500 HU. Elsewhere it is a tenth of what the bright tenth of the voxels
    above 0 reaches, since magnitude images have noise above 0 in the background.
    """
    if _share(values, (-np.inf, -500)) >= 1e-3:
        return -500.0
    positive = values[values > 0]
    return 0.1 * float(np.percentile(positive, 90)) if positive.size else -np.inf


def _sampled(volume: np.ndarray) -> np.ndarray:
    """Return the voxels, or equally spaced ones of a large volume, as a flat array."""
    step = max(1, volume.size // MAX_SAMPLE) | 1  # odd, so that rows are not hit at one place
    return volume.reshape(-1)[::step]


def _share(values: np.ndarray, span: tuple[float, float]) -> float:
    """Return the share of values from ``span[0]``, included, to ``span[1]``, excluded."""
    return np.count_nonzero((values >= span[0]) & (values < span[1])) / max(values.size, 1)
