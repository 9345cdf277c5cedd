"""Score cases in worker processes, and keep their scores on disk.

A case's scores lie in ``cases/<case>.json`` of the output folder. A later run takes them from there
if the network, its settings and the case's files are unchanged and the case's other outputs are
those of that run. So a stopped run resumes. The traceback of a case that failed by a defect, or
because memory ran out, lies in ``cases/<case>.log``.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache

import torch
from tqdm import tqdm

from segment_anything import Sam3D
from utils.errors import InputError
from utils.files.atomic import WriteError
from utils.files.stamp import stamp
from utils.run.executor import run_all
from utils.run.failures import explain, release_memory
from utils.run.network import NetworkFile
from utils.validation.kept import keep_score, kept_score, remove_kept_score
from utils.validation.protocol import NetworkFacts, RunSettings, ScoreJob
from utils.validation.scores import CaseScore
from utils.volumes.geometry import CropRule

logger = logging.getLogger(__name__)


def score_all(
    jobs: Sequence[ScoreJob], workers: int
) -> tuple[dict[str, CaseScore], dict[str, str]]:
    """Score the cases that have no kept scores.

    Returns:
        case -> scores, and case -> message of those that failed; both in the order of the jobs.

    Raises:
        WriteError: an output cannot be written; finished cases are kept.
        InputError: the network cannot be opened.
        WorkerDiedError: a worker process was killed; finished cases are kept.
    """
    kept = {job.case: score for job in jobs if (score := kept_score(job))}
    todo = [job for job in jobs if job.case not in kept]
    if kept:
        logger.info("%d of %d cases were scored before", len(kept), len(jobs))
    results = run_all(score_case, todo, workers=min(workers, max(1, len(todo))))
    found = dict(tqdm(results, total=len(todo), desc="validate", unit="case")) | kept
    ordered = {job.case: found[job.case] for job in jobs}
    scores = {case: score for case, score in ordered.items() if isinstance(score, CaseScore)}
    failures = {case: text for case, text in ordered.items() if isinstance(text, str)}
    return scores, failures


def score_case(job: ScoreJob) -> tuple[str, CaseScore | str]:
    """Score one case and keep the scores; return its name and the scores, or what went wrong.

    Raises:
        WriteError: an output cannot be written; the next ones could not be either.
        InputError: the network cannot be opened.
    """
    job.make_ready()
    try:
        return job.case, _scored(job)
    except WriteError:
        raise
    except InputError as error:
        return job.case, str(error)
    except Exception as error:  # one case must not stop the others
        message = explain(job.case, error, job.log_path).removeprefix(f"{job.case}: ")
    release_memory()  # the error, which holds the case's memory, is gone by now
    logger.error("%s: %s", job.case, message)
    return job.case, message


def _scored(job: ScoreJob) -> CaseScore:
    """Score a case; keep the scores."""
    key = job.key()  # first: if a source changes during scoring, the scores are outdated
    remove_kept_score(job)  # old scores must not lie beside new outputs
    job.log_path.unlink(missing_ok=True)
    score = job.score()
    keep_score(job, key, score)
    return score


def opened(settings: RunSettings) -> tuple[Sam3D, CropRule]:
    """Return the run's network and its crops, opened once in each process.

    Raises:
        InputError: the file cannot be opened, or holds another network than at the run's start.
    """
    torch.set_num_threads(settings.threads)
    model, rule, facts = open_once(settings.network)
    if facts.fingerprint != settings.fingerprint:
        raise InputError(
            f"{settings.network.path}: holds network {facts.fingerprint}, expected "
            f"{settings.fingerprint} as at the start of this run.\n"
            "Copy the file and validate the copy: a running training replaces its last.pt."
        )
    return model, rule


def open_once(network: NetworkFile) -> tuple[Sam3D, CropRule, NetworkFacts]:
    """Open a network; later calls in this process return the same one while its files stay."""
    files = (network.path, network.decoder, network.encoder)
    return _open(network, tuple(tuple(stamp(file)) for file in files if file and file.exists()))


@lru_cache(maxsize=1)
def _open(network: NetworkFile, stamps: tuple) -> tuple[Sam3D, CropRule, NetworkFacts]:
    model, rule = network.open()
    return model, rule, NetworkFacts.of(model)
