"""Scores by the thickness of targets; see utils/results/thickness.py."""

from collections.abc import Sequence

from utils.validation.scores import CaseScore
from utils.validation.tables import grouped, markdown

#: The clicks that the printed table shows.
SHOWN_CLICKS = (1, 3, 5)


def thickness_rows(scores: Sequence[CaseScore]) -> list[dict]:
    """Return the rows of ``thickness.csv``: mean scores of each class of targets, thin ones first.

    Empty where no thickness is known, which is so in scores of earlier versions.
    """
    rows = []
    for group in grouped(scores, "thickness"):
        dsc_auc, _, nsd_auc = group.scores.auc
        rows.append(
            {
                "thickness": group.name,
                "targets": group.targets,
                **{f"DSC_{k}": float(v) for k, v in enumerate(group.scores.dsc[1:], 1)},
                **{f"NSD_{k}": float(v) for k, v in enumerate(group.scores.nsd_official[1:], 1)},
                "DSC_AUC": dsc_auc,
                "NSD_AUC": nsd_auc,
            }
        )
    return rows


def thickness_table(scores: Sequence[CaseScore]) -> str:
    """Return these rows at clicks 1, 3 and 5 as Markdown; "" where no thickness is known.

    NSD is the evaluator's in protocol "challenge".
    """
    rows = [
        {
            "Thickness": row["thickness"],
            "Targets": str(row["targets"]),
            **{
                f"{metric} {k}": f"{row[f'{metric}_{k}']:.3f}"
                for metric in ("DSC", "NSD")
                for k in SHOWN_CLICKS
                if f"{metric}_{k}" in row
            },
        }
        for row in thickness_rows(scores)
    ]
    return markdown(rows) if rows else ""
