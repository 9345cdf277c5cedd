"""One case by the challenge's protocol, in whatever process: from its files to its kept scores.

Leaves ``cases/<case>.json``, the scores, and ``predictions/<case>.npz``, ``segs`` after the last
click with class ids as in the truth. Scores of a case are used again only where the network, its
settings and the case's files are the same.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from segment_anything import Sam3D
from utils.cases.challenge import read_challenge_case, write_segs
from utils.cases.label_table import LabelTableError, read_label_table
from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.files.npz import read_npz
from utils.prediction.predictor import Predictor, ready_predictor
from utils.prompts.kinds import Prompt
from utils.run.device import peak_memory_mib
from utils.run.network import NetworkFile
from utils.validation.challenge import Steps, evaluate, ranked
from utils.validation.scores import CaseScore, TargetScore
from utils.volumes.geometry import CropRule
from utils.volumes.labels import as_label

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One case to be scored, and how."""

    image_path: Path
    label_path: Path
    class_file: Path
    out_dir: Path
    checkpoint: NetworkFile
    device: str
    precision: str
    engine: str
    num_clicks: int
    boxes: bool  # begin with those that the case has
    threads: int
    settings: str  # digest of all that the scores depend on beside the case

    @property
    def case(self) -> str:
        """The file's stem."""
        return self.image_path.stem

    @property
    def score_path(self) -> Path:
        """Where the scores lie."""
        return self.out_dir / "cases" / f"{self.case}.json"

    @property
    def prediction_path(self) -> Path:
        """Where the last answer lies."""
        return self.out_dir / "predictions" / f"{self.case}.npz"

    def key(self) -> dict:
        """Return what must be the same for scores to be used again."""
        files = [self.image_path, self.label_path, self.class_file]
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return {"settings": self.settings, "files": [list(stat) for stat in stats]}


class PredictorAnswerer:
    """Answers in this process; prompts that it has seen are not given to the network again."""

    def __init__(
        self,
        predictor: Predictor,
        image: np.ndarray,
        spacing_xyz: Sequence[float],
        *,
        hounsfield: bool = False,
    ) -> None:
        self._predictor, self._given = predictor, {}
        predictor.set_image(image, spacing_xyz, hounsfield=hounsfield)

    def answer(self, prompts: list[list[Prompt]], previous: np.ndarray | None) -> np.ndarray:
        """Return the ranks of all classes' masks."""
        for rank, own in enumerate(prompts, start=1):
            for prompt in own[self._given.get(rank, 0) :]:
                self._predictor.add(prompt, target=rank)
            self._given[rank] = len(own)
        return self._predictor.segmentation()


def score_case(job: Job) -> tuple[str, CaseScore | str]:
    """Run the protocol on one case and write what came out; return its scores or what is wrong."""
    try:
        predictor = ready(
            job.checkpoint, job.settings, job.threads, job.device, job.precision, job.engine
        )
        case = read_challenge_case(job.image_path)
        labels = read_npz(job.label_path, ["gts"])["gts"]
        truth = as_label(labels, job.label_path)
        if truth.shape != case.image.shape:
            raise InputError(
                f"{job.label_path}: has shape {truth.shape} and the image {case.image.shape}. "
                "Expected one grid: take both files from one case."
            )
        class_ids, _ = ranked(truth)
        _require_prompts_of(job, case.prompts, class_ids)
        dataset, names = _names(job, class_ids)
        boxes = case.boxes if job.boxes else None
        answerer = PredictorAnswerer(
            predictor, case.image, case.spacing_xyz, hounsfield=case.hounsfield
        )
        steps = evaluate(answerer, truth, case.spacing_xyz, boxes, job.num_clicks)
        targets = _target_scores(names, steps, truth)
        score = CaseScore(
            case=job.case,
            dataset=dataset,
            modality=dataset.split("_")[0],
            shape=truth.shape,
            spacing_xyz=case.spacing_xyz,
            has_box=boxes is not None,
            seconds=tuple(steps.seconds),
            peak_memory_mib=peak_memory_mib(predictor.network.device),
            targets=targets,
        )
    except InputError as error:
        return job.case, str(error)
    except Exception as error:  # one case must not cost the others theirs
        log.exception("%s", job.case)
        return job.case, f"{type(error).__name__}: {error}"
    ids = np.array([0, *steps.class_ids], truth.dtype)
    write_segs(job.prediction_path, ids[steps.answers[-1]])
    with atomic_path(job.score_path) as temporary:
        temporary.write_text(json.dumps({"key": job.key(), "score": score.to_dict()}))
    return job.case, score


@lru_cache(maxsize=1)
def ready(
    checkpoint: NetworkFile, settings: str, threads: int, device: str, precision: str, engine: str
) -> Predictor:
    """Make a network ready to answer, once a process."""
    network = opened(checkpoint, settings, threads)
    return ready_predictor(*network, device=device, precision=precision, engine=engine)


@lru_cache(maxsize=1)
def opened(checkpoint: NetworkFile, settings: str, threads: int) -> tuple[Sam3D, CropRule]:
    """Open the network once a process; ``settings`` tells another one under the same name."""
    torch.set_num_threads(threads)
    return checkpoint.open()


def kept_score(job: Job) -> CaseScore | None:
    """Return what an earlier run scored, if it was the same; a broken file counts as none."""
    try:
        content = json.loads(job.score_path.read_text())
        same = content["key"] == job.key() and job.prediction_path.is_file()
        return CaseScore.from_dict(content["score"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _require_prompts_of(job: Job, prompts: list[list[Prompt]], class_ids: list[int]) -> None:
    classes = len(class_ids)
    if classes == 0:
        raise InputError(f"{job.label_path}: the truth is empty, expected a class or more.")
    if prompts and len(prompts) != classes:
        raise InputError(
            f"{job.image_path}: has boxes of {len(prompts)} classes and {job.label_path} has "
            f"{classes} classes. Expected one box a class, in order of class id: take both files "
            "from one case."
        )


def _target_scores(
    names: list[tuple[str, str]], steps: Steps, truth: np.ndarray
) -> tuple[TargetScore, ...]:
    voxels = np.bincount(truth.reshape(-1))
    return tuple(
        TargetScore(
            class_id=value,
            name=name,
            organ=organ,
            voxels=int(voxels[value]),
            dsc=tuple(map(float, steps.dsc[:, n])),
            nsd=tuple(map(float, steps.nsd[:, n])),
            nsd_official=tuple(map(float, steps.nsd_official[:, n])),
            clicks=tuple((*c.zyx, int(c.is_foreground)) for c in steps.clicks[n]),
        )
        for n, (value, (name, organ)) in enumerate(zip(steps.class_ids, names, strict=True))
    )


def _names(job: Job, ids: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """Return a case's data set, and name and organ of every class.

    Raises:
        LabelTableError: the class file does not know the data set, or one of the classes.
    """
    table = read_label_table(job.class_file)
    dataset = table.dataset_of(job.case)
    labels = table.labels_of(dataset)
    if labels.instance:
        return dataset, [(f"{labels.classes[1]} {value}", labels.organs[1]) for value in ids]
    unknown = [value for value in ids if value not in labels.classes]
    if unknown:
        raise LabelTableError(
            f"{dataset}: the truth holds class {unknown[0]}, {table.path} knows "
            f"{sorted(labels.classes)}. Expected every class in the class file: add it."
        )
    return dataset, [(labels.classes[value], labels.organs[value]) for value in ids]
