"""Compare two finished validations, target by target, with a bootstrap over patients.

Reads   RUN_A RUN_B     output folders of validation.py or validation_student.py: cases.csv of
                        protocol clicks, challenge.csv of protocol challenge
Writes  --out           a new CSV file with the table, if given; nothing else

The difference is B - A, over the same targets (protocol clicks) or cases (protocol challenge). All
targets of a patient are drawn together: they resemble each other, and targets drawn alone would
make the interval too narrow. A patient is identified by the case's name without the data set's
name, as with --val-share of the trainings. A difference whose interval holds 0 may be chance. The
interval knows nothing of other seeds of the training.

    python -m utils.validation.compare work_dir/before work_dir/after
"""

import argparse
import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError, exit_on_input_error, printable
from utils.files.safe_read import open_regular, reading
from utils.results.csv_table import write_csv
from utils.run.flags import new_file, non_negative_int
from utils.validation.tables import markdown

RESAMPLES = 10_000
_SHOWN_CLICKS = (1, 3, 5)


class Table(NamedTuple):
    """The table of a protocol."""

    file: str
    name: str  # column with the name of a target or case
    boxes: int  # steps before the first click: 1 for the box


TABLES = {
    "clicks": Table("cases.csv", "sample_id", 0),
    "challenge": Table("challenge.csv", "CaseName", 1),
}


class Run(NamedTuple):
    """The scores of a finished validation."""

    path: Path  # of the table
    scores: dict[str, dict[str, float]]  # target or case -> metric -> score; NaN: no box
    patients: dict[str, str]  # target or case -> patient


class Difference(NamedTuple):
    """A metric of two runs."""

    metric: str
    mean_a: float
    mean_b: float
    difference: float  # B - A
    low: float  # of the 95 % interval of the difference
    high: float
    better: float  # share of targets or cases where B is higher
    worse: float


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="output folder of a validation")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="output folder of another one")
    parser.add_argument(
        "--protocol",
        choices=sorted(TABLES),
        help="(default: clicks where both folders hold it, else challenge)",
    )
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, help="of the bootstrap (default: 0)"
    )
    parser.add_argument("--out", type=new_file, help="new CSV file for the table")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> list[Difference]:
    """Compare the runs as ``args`` say; write ``args.out``, if given.

    Raises:
        InputError: a table is missing or damaged, or the runs are not over the same targets.
    """
    protocol = args.protocol or _common_protocol(args.run_a, args.run_b)
    a, b = (read_run(folder, protocol) for folder in (args.run_a, args.run_b))
    require_same_targets(a, b)
    found = differences(a, b, args.seed)
    if args.out:
        write_csv(args.out, [each._asdict() for each in found], digits=6)
    return found


def _common_protocol(*folders: Path) -> str:
    for protocol, table in TABLES.items():
        if all((folder / table.file).is_file() for folder in folders):
            return protocol
    raise InputError(
        f"{folders[0]} and {folders[1]}: found no table that both hold. Expected cases.csv or "
        "challenge.csv in both: give the --out-dir of two finished validations of one protocol."
    )


def read_run(folder: Path, protocol: str) -> Run:
    """Read the scores of a finished validation.

    Args:
        folder: its ``--out-dir``.
        protocol: one of `TABLES`.

    Raises:
        InputError: the table is missing, has no row, lacks a column, or holds no number.
    """
    table = TABLES[protocol]
    path = folder / table.file
    with reading(path, "a table of a finished validation"), open_regular(path) as stream:
        lines = stream.read().decode("utf-8", "replace").splitlines()
    rows = list(csv.DictReader(lines))
    columns = _columns(rows[0] if rows else {}, table)
    scores, patients = {}, {}
    for row in rows:
        try:
            scores[row[table.name]] = _scores(row, columns)
            patients[row[table.name]] = patient_of(row[table.name], row)
        except (KeyError, TypeError, ValueError) as error:
            raise _unusable(path, f"the row {str(row)[:99]!a}") from error
    if not scores or len(scores) < len(rows):
        raise _unusable(path, f"{len(rows)} rows with {len(scores)} names")
    return Run(path, scores, patients)


def _columns(row: Mapping[str, str], table: Table) -> dict[str, str]:
    """Return the column of each metric: at the box, at clicks 1, 3, 5 and the last, and areas."""
    steps = {"box": 1} if table.boxes else {}
    last = sum(re.fullmatch(r"DSC_\d+", column) is not None for column in row) - table.boxes
    clicks = sorted({k for k in (*_SHOWN_CLICKS, last) if 1 <= k <= last})
    steps |= {f"click {k}": k + table.boxes for k in clicks}
    shown = {f"{m} {title}": f"{m}_{k}" for m in ("DSC", "NSD") for title, k in steps.items()}
    return shown | {"DSC_AUC": "DSC_AUC", "NSD_AUC": "NSD_AUC"}


def _scores(row: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, float]:
    """Return the scores of a row by metric; NaN at the box where the case has none.

    Raises:
        ValueError: a score is missing, or no finite number.
    """
    scores = {metric: float(row[column]) for metric, column in columns.items()}
    if not all(map(math.isfinite, scores.values())):
        raise ValueError("a score is not finite")
    has_box = float(row.get("RunningTime_1", 1)) > 0  # a skipped box step takes no time
    return {m: math.nan if m[4:] == "box" and not has_box else v for m, v in scores.items()}


def _unusable(path: Path, found: str) -> InputError:
    return InputError(
        f"{path}: found {found}. Expected a row with a name of its own and finite scores for each "
        "target: run the validation again, it makes the table from the scores that it kept."
    )


def patient_of(name: str, row: Mapping[str, str]) -> str:
    """Return the patient of a target or case: the case's name without the data set's name.

    >>> patient_of("liver/CT_A/CT_A_007#3", {"dataset": "CT_A"})
    '_007'
    >>> patient_of("CT_A_007", {})  # the challenge's table does not say the data set
    'CT_A_007'
    """
    case = re.sub(r"#\d+$", "", name.rsplit("/", 1)[-1])
    return case.removeprefix(row.get("dataset") or "") or case


def require_same_targets(a: Run, b: Run) -> None:
    """Raise `InputError` unless both runs scored the same targets with equally many clicks."""
    only_a, only_b = a.scores.keys() - b.scores.keys(), b.scores.keys() - a.scores.keys()
    if only_a or only_b:
        first = min(only_a or only_b)
        raise InputError(
            f"{a.path} and {b.path}: found {len(only_a)} targets in the first alone and "
            f"{len(only_b)} in the second alone, such as {first!a:.200}. Expected the same targets "
            "in both: validate both networks on the same folders, and look for failed cases."
        )
    metrics_a, metrics_b = (list(next(iter(run.scores.values()))) for run in (a, b))
    if metrics_a != metrics_b:
        raise InputError(
            f"{a.path} and {b.path}: found the scores {metrics_a} and {metrics_b}. Expected the "
            "same clicks in both: validate both networks with the same --num-clicks."
        )


def differences(a: Run, b: Run, seed: int) -> list[Difference]:
    """Return the difference B - A of each metric, with its 95 % interval.

    The interval holds the middle 95 % of the mean differences of 10,000 resamples; each draws as
    many patients as there are, with replacement.

    Args:
        a, b: over the same targets.
        seed: of the resamples.
    """
    names = sorted(a.scores)
    metrics = list(a.scores[names[0]])
    values = np.array([[list(run.scores[name].values()) for name in names] for run in (a, b)])
    gain = values[1] - values[0]  # (targets, metrics)
    known = np.isfinite(gain)
    _, patient = np.unique([a.patients[name] for name in names], return_inverse=True)
    low, high = _interval(np.where(known, gain, 0), known, patient, seed)
    found = []
    for n, metric in enumerate(metrics):
        if known[:, n].any():
            own = values[:, known[:, n], n]
            figures = (*own.mean(axis=1), (own[1] - own[0]).mean(), low[n], high[n])
            figures += ((own[1] > own[0]).mean(), (own[1] < own[0]).mean())
            found.append(Difference(metric, *map(float, figures)))
    return found


def _interval(
    gain: np.ndarray, known: np.ndarray, patient: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % intervals (metrics,) of the mean gain.

    Args:
        gain: (targets, metrics), 0 where it is not known.
        known: (targets, metrics) bool.
        patient: (targets,) number of each target's patient, from 0.
    """
    count = int(patient.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    sums, targets = np.zeros((2, count, gain.shape[1]))
    np.add.at(sums, patient, gain)
    np.add.at(targets, patient, known)
    with np.errstate(invalid="ignore"):  # a resample without a target that has the score
        means = (drawn @ sums) / (drawn @ targets)
    low, high = np.full((2, gain.shape[1]), math.nan)
    some = known.any(axis=0)
    low[some], high[some] = np.nanpercentile(means[:, some], (2.5, 97.5), axis=0)
    return low, high


def table(found: Sequence[Difference]) -> str:
    """Return the differences as a Markdown table."""
    return markdown(
        [
            {
                "": each.metric,
                "A": f"{each.mean_a:.3f}",
                "B": f"{each.mean_b:.3f}",
                "B - A": f"{each.difference:+.3f}",
                "95 % interval": f"{each.low:+.3f} to {each.high:+.3f}",
                "B better": f"{100 * each.better:.0f} %",
                "B worse": f"{100 * each.worse:.0f} %",
            }
            for each in found
        ]
    )


@exit_on_input_error
def main() -> int:
    args = parse_args()
    found = run(args)
    print(printable(table(found)))
    return 0


if __name__ == "__main__":
    main()
