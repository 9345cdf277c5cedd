"""The rows of a run's metrics.jsonl, for tests that compare runs."""

import json

TIMES = ("minutes", "wait_seconds", "step_seconds")  # these differ from run to run


def rows_of(out):
    """Return the rows of the run in a folder, without what the clock says."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in TIMES} for row in rows]
