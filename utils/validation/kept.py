"""Scores kept on disk, one file a case, so that a stopped run resumes.

A file may be damaged, edited or from another machine. It counts only if all of it is as a run with
these settings would have written it for this case.
"""

import json
import logging
from dataclasses import dataclass

from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.files.names import is_inside
from utils.files.strict_json import JsonError, parse_json
from utils.validation.protocol import ScoreJob
from utils.validation.scores import CaseScore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptScore:
    """The content of a file of kept scores."""

    key: dict
    outputs: dict[str, list[int]]
    score: dict


def keep_score(job: ScoreJob, key: dict, score: CaseScore) -> None:
    """Write the scores of a case, with the state of its outputs.

    Args:
        key: of the job, from before the case was scored.
    """
    content = {"key": key, "outputs": job.states(), "score": score.to_dict()}
    with atomic_path(job.score_path) as temporary:
        temporary.write_text(json.dumps(content))


def kept_score(job: ScoreJob) -> CaseScore | None:
    """Return the scores of an earlier run if they are still valid; a damaged file counts as none.

    Scores are valid if sources and settings are unchanged, and the outputs are those that were
    written together with the scores.
    """
    try:
        content = parse_json(job.score_path.read_bytes(), KeptScore)
    except FileNotFoundError:
        return None
    except (OSError, JsonError) as error:
        return _refused(job, error)
    try:
        same_outputs = job.states().items() <= content.outputs.items()
        if not same_outputs or content.key != job.key():
            return None
    except InputError:  # a source or an output is missing
        return None
    try:
        score = CaseScore.from_dict(content.score)
    except InputError as error:
        return _refused(job, error)
    steps = job.settings.num_clicks + 1
    found = (score.case, score.protocol, len(score.seconds))
    if found != (expected := (job.case, job.protocol, steps)):
        return _refused(job, f"case, protocol and steps are {found}, expected {expected}")
    return score


def remove_kept_score(job: ScoreJob) -> None:
    """Remove the kept scores of a case, also if they are damaged.

    Raises:
        InputError: another kind of file has their place, or it lies behind a link.
    """
    path = job.score_path
    inside = is_inside(path.relative_to(job.out_dir).as_posix(), job.out_dir)
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, JsonError):
        content = {"key": None}  # damaged
    if not inside or not isinstance(content, dict) or "key" not in content:
        raise InputError(
            f"{path}: is no file of scores, or lies behind a link, and would be replaced by the "
            f"scores of {job.case}. Expected a folder for this run alone: choose another --out-dir."
        )
    path.unlink()


def _refused(job: ScoreJob, reason: object) -> None:
    logger.warning("%s: counts as no score: %s", job.score_path, str(reason).splitlines()[0][:300])
