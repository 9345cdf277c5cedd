"""The report of a validation: one HTML file with everything in it.

The page needs no other file: pictures are inside, there is no script, and nothing is fetched. It
has no date, so the same scores make the same bytes.
"""

import base64
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from utils.files.atomic import atomic_path
from utils.results.curves import spread_figure
from utils.results.figures import png_bytes
from utils.validation.protocol import Overlay, Section
from utils.validation.scores import CHALLENGE, CLICKS, CaseScore
from utils.validation.tables import (
    WITH_BOX,
    WITHOUT_BOX,
    Group,
    anatomy_rows,
    grouped,
    num_steps,
    overall_rows,
)

_TEMPLATE_FILE = Path(__file__).with_suffix(".html")
_WORST = 10
_MOST_STEPS = 6  # columns of DSC that a page holds

_SECTIONS = {
    "prompt": "Prompt",
    "modality": "Modality",
    "dataset": "Data set",
    "group": "Anatomy",
    "organ": "Organ",
    "thickness": "Thickness",
}


class Picture(NamedTuple):
    """A picture in the page."""

    caption: str
    uri: str


class StepTime(NamedTuple):
    """Wall seconds of a step, or of all of them, over the cases that ran it."""

    name: str
    cases: int
    median: float
    longest: float


def write_report(
    path: Path,
    scores: Sequence[CaseScore],
    *,
    model: str,
    fingerprint: str,
    resolution: str,
    settings: Mapping[str, str],
    notes: Sequence[str] = (),
    sections: Sequence[Section] = (),
    overlays: Sequence[Overlay] = (),
    failures: Mapping[str, str] | None = None,
    trained_on: Collection[str] | None = None,
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        scores: at least one case, all of one protocol; in the order in which ties are listed.
        model: name of the network.
        fingerprint: of its weights.
        resolution: of its input, such as "128³".
        settings: settings of the run by name, in the order to show. Dates and temporary paths
            would make the reports of two equal runs differ.
        notes: lines to show below the average scores.
        sections: further tables.
        overlays: pictures of the worst cases, in the order to show.
        failures: case -> message of those that have no score.
        trained_on: the "organ/data set" folders of the training; None if unknown.
    """
    text = _template().render(
        model=model,
        fingerprint=fingerprint,
        settings=settings,
        notes=notes,
        more=sections,
        overlays=[_overlay_picture(overlay) for overlay in overlays],
        failures=failures or {},
        **_content(scores, model, resolution, trained_on),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def _content(
    scores: Sequence[CaseScore],
    model: str,
    resolution: str,
    trained_on: Collection[str] | None,
) -> dict[str, object]:
    """Return the template's variables that depend on the scores."""
    return {
        "clicks": num_steps(scores) - 1,  # first: raises if the cases cannot be averaged
        "is_challenge": scores[0].protocol == CHALLENGE,
        "shown": _shown_steps(scores),
        "whole": grouped(scores, "all")[0],
        "sections": _sections(scores, trained_on),
        "curves": _curves(scores),
        "overall": overall_rows({model: scores}, resolution),
        "anatomy": anatomy_rows({model: scores}, trained_on),
        "worst": worst_cases(scores, _WORST),
        "times": step_times(scores),
        "timed_out": [case for case in scores if case.timed_out],
        "hungriest": max(scores, key=lambda case: case.peak_memory_mib),
    }


def _overlay_picture(overlay: Overlay) -> Picture:
    caption = f"{overlay.case}: {overlay.title}" if overlay.title else overlay.case
    return Picture(caption, _uri(overlay.png_bytes))


def worst_cases(scores: Sequence[CaseScore], count: int) -> list[CaseScore]:
    """Return the cases of lowest DSC after the last step, the lowest first."""
    return sorted(scores, key=lambda case: (case.scores.final[0], case.case))[:count]


def step_times(scores: Sequence[CaseScore]) -> list[StepTime]:
    """Return how long each step took, and the whole case; skipped box steps do not count."""
    names = ["box", *(f"click {k}" for k in range(1, num_steps(scores)))]
    seconds = {
        name: [case.seconds[step] for case in scores if step or case.has_box]
        for step, name in enumerate(names)
    }
    seconds["whole case"] = [case.total_seconds for case in scores]
    return [
        StepTime(name, len(own), float(np.median(own)), max(own))
        for name, own in seconds.items()
        if own
    ]


def _shown_steps(scores: Sequence[CaseScore]) -> list[int]:
    """Return the steps that the tables show, 0 being the box: all, or as many as a page holds."""
    steps = num_steps(scores)
    shown = list(range(steps)) if steps <= _MOST_STEPS else [0, 1, 2, 3, 5, steps - 1]
    return shown[1:] if scores[0].protocol == CLICKS else shown


def _sections(
    scores: Sequence[CaseScore], trained_on: Collection[str] | None
) -> dict[str, list[Group]]:
    has_boxes = scores[0].protocol == CHALLENGE
    shown = {key: title for key, title in _SECTIONS.items() if has_boxes or key != "prompt"}
    groups = {title: grouped(scores, key, trained_on) for key, title in shown.items()}
    return {title: found for title, found in groups.items() if found}


def _curves(scores: Sequence[CaseScore]) -> list[Picture]:
    if scores[0].protocol == CLICKS:
        nsd = ("NSD at 2 mm after each click", "nsd_correct", "NSD")
        drawn = [("DSC after each click", "dsc", "DSC"), nsd]
    else:
        caption = "NSD at 2 mm after each step, as the evaluator computes it"
        nsd = (caption, "nsd_official", "NSD (official)")
        drawn = [("DSC after each step", "dsc", "DSC"), nsd]
    return [
        Picture(caption, _uri(png_bytes(score_figure(scores, metric, ylabel))))
        for caption, metric, ylabel in drawn
    ]


def score_figure(scores: Sequence[CaseScore], metric: str, ylabel: str) -> Figure:
    """Draw a score over the steps, one curve for the cases with a box and one for the others.

    Args:
        scores: at least one case.
        metric: field of `StepScores` to draw.
        ylabel: what it is called.
    """
    steps = ["box", *map(str, range(1, num_steps(scores)))]
    boxed = [getattr(case.scores, metric) for case in scores if case.has_box]
    unboxed = [getattr(case.scores, metric)[1:] for case in scores if not case.has_box]
    if scores[0].protocol == CLICKS:
        return spread_figure({"clicks": np.array(unboxed)}, steps[1:], ylabel)
    series = {WITH_BOX: np.array(boxed), WITHOUT_BOX: np.array(unboxed)}
    return spread_figure(series, steps, ylabel)


def _uri(png_bytes: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes).decode("ascii")


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE_FILE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE_FILE.name)
