"""Scores as tables: rows of the CSV files, groups of cases or targets, and Markdown.

In protocol "challenge", columns named NSD have the evaluator's value, those named NSD_correct the
value with the spacing in the right order (see utils/validation/scores.py). Where a case counts as 0
by the challenge's rules, its targets count as 0 in averages over targets too. Then the average of
an organ equals that of a data set with this organ alone. Only ``targets.csv`` has the scores as
measured. In protocol "clicks" all averages are over targets, of scores as measured.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.prompts.kinds import Click
from utils.results.anatomy import LESION, REPORT_GROUPS, SEEN_LESION, UNSEEN_LESION, report_group
from utils.results.ball import BALL_RADII_MM, best_fixed_radius
from utils.results.csv_table import write_csv
from utils.results.thickness import THICKNESS_CLASSES, thickness_class
from utils.validation.ceiling_tables import ceiling_columns
from utils.validation.scores import CHALLENGE, CLICKS, CaseScore, StepScores, TargetScore

#: What `grouped` averages by: whole cases (targets in protocol "clicks"), then single targets.
CASE_KEYS = ("all", "prompt", "modality", "dataset")
TARGET_KEYS = ("group", "organ", "thickness")

WITH_BOX, WITHOUT_BOX = "with box", "without box"


class Group(NamedTuple):
    """The average of some cases, or of some targets."""

    key: str  # one of CASE_KEYS or TARGET_KEYS
    name: str
    cases: int
    with_box: int  # of the cases
    targets: int
    scores: StepScores  # (steps,)


def challenge_rows(scores: Sequence[CaseScore]) -> list[dict]:
    """Return the evaluator's table, one row for each case; NSD is the official one."""
    steps = range(1, num_steps(scores) + 1)
    rows = []
    for case in scores:
        of = case.scores
        rows.append(
            {
                "CaseName": case.case,
                "TotalRunningTime": case.total_seconds,
                **{f"RunningTime_{k}": case.seconds[k - 1] for k in steps},
                "DSC_AUC": of.auc[0],
                "NSD_AUC": of.auc[1],
                "DSC_Final": of.final[0],
                "NSD_Final": of.final[1],
                **{f"DSC_{k}": float(of.dsc[k - 1]) for k in steps},
                **{f"NSD_{k}": float(of.nsd_official[k - 1]) for k in steps},
                "num_class": len(case.targets),
                "runtime_upperbound": case.seconds_allowed,
            }
        )
    return rows


def target_rows(
    scores: Sequence[CaseScore], trained_on: Collection[str] | None = None
) -> list[dict]:
    """Return one row for each target: scores as measured, without DSC floor and time limit."""
    return [
        {
            "case": case.case,
            "dataset": case.dataset,
            "modality": case.modality,
            "class_id": target.class_id,
            "name": target.name,
            "organ": target.organ,
            "group": report_group(case.dataset, target.organ, trained_on),
            "voxels": target.voxels,
            "thickness_mm": target.thickness_mm,
            "has_box": int(case.has_box),
            "timed_out": int(case.timed_out),
            **_columns(StepScores(*map(np.array, (target.dsc, target.nsd_official, target.nsd)))),
            "clicks_zyx": _clicks_text(target),
        }
        for case in scores
        for target in case.targets
    ]


def click_rows(scores: Sequence[CaseScore]) -> list[dict]:
    """Return one row for each target of protocol "clicks": scores, times and clicks."""
    clicks = range(1, num_steps(scores))
    return [
        {
            "sample_id": target.name,
            "organ": target.organ,
            "dataset": case.dataset,
            "coverage": target.coverage,
            "thickness_mm": target.thickness_mm,
            **_auc_columns(of),
            **{f"DSC_{k}": target.dsc[k] for k in clicks},
            **{f"NSD_{k}": target.nsd[k] for k in clicks},
            **{
                f"mended_{k}": target.mended[k - 1] if k <= len(target.mended) else math.nan
                for k in clicks
            },
            **ceiling_columns([target]),
            "encoder_ms": target.encoder_ms,
            "decoder_ms": float(np.mean(target.decoder_ms)),
            "clicks_zyx": _clicks_text(target),
        }
        for case in scores
        for target in case.targets
        for of in [StepScores(*map(np.array, target.curves))]
    ]


def organ_rows(scores: Sequence[CaseScore]) -> list[dict]:
    """Average the targets of each (data set, organ); add the ball of the best radius for it."""
    groups = defaultdict(list)
    for case in scores:
        for target in case.targets:
            groups[case.dataset, target.organ].append(target)
    rows = []
    for (dataset, organ), targets in sorted(groups.items()):
        curves = StepScores(*np.moveaxis(np.array([t.curves for t in targets]), 1, 0)).mean()
        ball = np.array([target.ball_dsc for target in targets])
        radius, ball_dsc = best_fixed_radius(ball, BALL_RADII_MM)
        rows.append(
            {
                "dataset": dataset,
                "organ": organ,
                "targets": len(targets),
                **{f"DSC_{k}": float(v) for k, v in enumerate(curves.dsc[1:], 1)},
                **{f"NSD_{k}": float(v) for k, v in enumerate(curves.nsd_correct[1:], 1)},
                **_auc_columns(curves),
                **ceiling_columns(targets),
                "ball_radius_mm": float(radius),
                "ball_DSC": float(ball_dsc),
            }
        )
    return rows


def clicked(target: TargetScore) -> list[Click]:
    """Return a target's clicks, in order."""
    return [Click((z, y, x), bool(kind)) for z, y, x, kind in target.clicks]


def _clicks_text(target: TargetScore) -> str:
    return " ".join(
        f"{'+' if click.is_foreground else '-'}{','.join(map(str, click.zyx))}"
        for click in clicked(target)
    )


def _auc_columns(of: StepScores) -> dict[str, float]:
    dsc_auc, _, nsd_auc = of.auc
    return {"DSC_AUC": dsc_auc, "NSD_AUC": nsd_auc}


def grouped(
    scores: Sequence[CaseScore], key: str, trained_on: Collection[str] | None = None
) -> list[Group]:
    """Average the scores of each group.

    Args:
        scores: cases with the same number of steps.
        key: one of CASE_KEYS, which average cases as the challenge does, or of TARGET_KEYS, which
            average targets. Protocol "clicks" averages targets with all keys. "thickness" leaves
            out targets whose thickness is not known, in scores of earlier versions.
        trained_on: the "organ/data set" folders of the training, for "group" (`report_group`).

    Returns:
        Groups in alphabetical order; with box first, anatomy in the order of its columns, and thin
        targets first.
    """
    assert key in CASE_KEYS + TARGET_KEYS, key
    num_steps(scores)  # raises if the cases cannot be averaged
    members = defaultdict(list)
    for name, case, of in _members(scores, key, trained_on):
        members[name].append((case, of))
    fixed = {
        "prompt": (WITH_BOX, WITHOUT_BOX),
        "group": REPORT_GROUPS,
        "thickness": THICKNESS_CLASSES,
    }.get(key, sorted(members))
    return [_group(key, name, members[name]) for name in fixed if name in members]


def _members(
    scores: Sequence[CaseScore], key: str, trained_on: Collection[str] | None
) -> Iterator[tuple[str, CaseScore, StepScores]]:
    """Yield the name of the group, the case and the (steps,) scores of each case or target."""
    for case in scores:
        if key in CASE_KEYS and case.protocol == CHALLENGE:
            yield _case_name(case, key), case, case.scores
            continue
        of = case.target_scores
        for index, target in enumerate(case.targets):
            name = _target_name(case, target, key, trained_on)
            if name is not None:
                yield name, case, StepScores(*(curve[index] for curve in of))


def _target_name(
    case: CaseScore, target: TargetScore, key: str, trained_on: Collection[str] | None
) -> str | None:
    """Return the group of a target; None where it is not known."""
    if key == "group":
        return report_group(case.dataset, target.organ, trained_on)
    if key == "thickness":
        return None if target.thickness_mm is None else thickness_class(target.thickness_mm)
    return target.organ if key == "organ" else _case_name(case, key)


def _case_name(case: CaseScore, key: str) -> str:
    return {
        "all": "all",
        "prompt": WITH_BOX if case.has_box else WITHOUT_BOX,
        "modality": case.modality,
        "dataset": case.dataset,
    }[key]


def _group(key: str, name: str, members: Sequence[tuple[CaseScore, StepScores]]) -> Group:
    cases = {case.case: case for case, _ in members}.values()
    targets = len(members) if key in TARGET_KEYS else sum(len(case.targets) for case in cases)
    curves = StepScores(*map(np.array, zip(*(of for _, of in members), strict=True)))
    return Group(key, name, len(cases), sum(c.has_box for c in cases), targets, curves.mean())


def overall_rows(models: Mapping[str, Sequence[CaseScore]], resolution: str) -> list[dict]:
    """Return SAM-Med3D's first table (arXiv:2310.15161), one row a model and prompt.

    Args:
        models: the scores of each model by name.
        resolution: of the network's input, such as "128³".

    Returns:
        Texts by column. Protocol "challenge": over the prompt's cases the median of the seconds of
        that step alone, the mean Dice and the mean official NSD. Protocol "clicks": the network's
        time from the image to that click, and the mean Dice over targets.
    """
    rows = []
    for model, scores in models.items():
        for prompt, step, cases in _prompts(scores):
            if cases[0].protocol == CLICKS:
                rows.append(_clicks_overall_row(model, prompt, step, cases, resolution))
                continue
            of = grouped(cases, "all")[0].scores
            seconds = np.median([case.seconds[step] for case in cases])
            rows.append(
                {
                    "Model": model,
                    "Prompt": prompt,
                    "Cases": str(len(cases)),
                    "Resolution": resolution,
                    "Inference time (s per case and step)": f"{seconds:.2f}",
                    "Dice (%)": _percent(of.dsc[step]),
                    "NSD (%)": _percent(of.nsd_official[step]),
                }
            )
    return rows


def _clicks_overall_row(
    model: str, prompt: str, clicks: int, cases: Sequence[CaseScore], resolution: str
) -> dict:
    targets = [target for case in cases for target in case.targets]
    encoder_ms = np.median([target.encoder_ms for target in targets])
    decoder_ms = np.median([ms for target in targets for ms in target.decoder_ms])
    return {
        "Model": model,
        "Prompt": prompt,
        "Resolution": resolution,
        "Inference time (ms)": f"{encoder_ms + clicks * decoder_ms:.0f}",
        "Dice (%)": _percent(grouped(cases, "all")[0].scores.dsc[clicks]),
    }


def anatomy_rows(
    models: Mapping[str, Sequence[CaseScore]], trained_on: Collection[str] | None = None
) -> list[dict]:
    """Return SAM-Med3D's second table: Dice (%) of each anatomy group, "-" where it has no target.

    Lesions have two columns, seen and unseen, if the folders of the training are known; else one.
    """
    absent = {LESION} if trained_on is not None else {SEEN_LESION, UNSEEN_LESION}
    columns = [group for group in REPORT_GROUPS if group not in absent]
    rows = []
    for model, scores in models.items():
        for prompt, step, cases in _prompts(scores):
            dice = {g.name: g.scores.dsc[step] for g in grouped(cases, "group", trained_on)}
            shown = {name: _percent(dice[name]) if name in dice else "-" for name in columns}
            rows.append({"Model": model, "Prompt": prompt, **shown})
    return rows


def _prompts(scores: Sequence[CaseScore]) -> Iterator[tuple[str, int, list[CaseScore]]]:
    """Yield for each shown step the prompts up to it as text, its index, and its cases."""
    last = num_steps(scores) - 1
    boxed, unboxed = ([c for c in scores if c.has_box == has] for has in (True, False))
    shown = {1, last} if scores[0].protocol == CHALLENGE else {1, min(5, last), last}
    points = {step: f"{step} point" + ("s" if step > 1 else "") for step in sorted(shown)}
    if boxed:
        yield "box", 0, boxed
        yield from ((f"box + {text}", step, boxed) for step, text in points.items())
    if unboxed:
        yield from ((text, step, unboxed) for step, text in points.items())


def write_challenge_tables(
    scores: Sequence[CaseScore], out_dir: Path, trained_on: Collection[str] | None = None
) -> None:
    """Write challenge.csv, targets.csv and groups.csv."""
    write_csv(out_dir / "challenge.csv", challenge_rows(scores), digits=6)
    write_csv(out_dir / "targets.csv", target_rows(scores, trained_on), digits=6)
    groups = [g for key in CASE_KEYS + TARGET_KEYS for g in grouped(scores, key, trained_on)]
    write_csv(out_dir / "groups.csv", [_group_row(group) for group in groups], digits=6)


def num_steps(scores: Sequence[CaseScore]) -> int:
    """Return how many steps each case has, the box step included.

    Raises:
        InputError: no case, or cases of different numbers of steps.
    """
    counts = sorted({len(case.seconds) for case in scores})
    if len(counts) != 1:
        raise InputError(
            f"{len(scores)} cases have {counts} steps; expected the same number for all. Validate "
            "all cases with the same --num-clicks."
        )
    return counts[0]


def _group_row(group: Group) -> dict:
    named = {"by": group.key, "name": group.name, "cases": group.cases}
    counts = {"cases_with_box": group.with_box, "targets": group.targets}
    return {**named, **counts, **_columns(group.scores)}


def _columns(of: StepScores) -> dict[str, float]:
    """Return (steps,) scores by column."""
    names = ("DSC", "NSD", "NSD_correct")
    auc = {f"{name}_AUC": value for name, value in zip(names, of.auc, strict=True)}
    final = {f"{name}_Final": value for name, value in zip(names, of.final, strict=True)}
    curves = zip(names, of, strict=True)
    steps = {f"{name}_{k}": float(v) for name, curve in curves for k, v in enumerate(curve, 1)}
    return {**auc, **final, **steps}


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of texts as a Markdown table with the first row's columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(
        "| " + " | ".join(c.replace("|", r"\|") for c in cells) + " |" for cells in lines
    )
