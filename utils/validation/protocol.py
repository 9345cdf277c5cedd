"""The interface of a validation protocol: one loop and one report serve all protocols.

A `ValidationProtocol` finds the cases and makes a `ScoreJob` of each. A job scores its case in any
process. The protocol then makes tables and a summary of all scores. `utils.validation.run` does
the rest.
"""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from segment_anything import Sam3D, fingerprint
from utils.files.stamp import stamp
from utils.run.network import NetworkFile
from utils.validation.scores import CaseScore


@dataclass(frozen=True)
class RunSettings:
    """How all cases of a run are scored; picklable and hashable."""

    network: NetworkFile
    device: str  # as torch names it: "auto" is resolved
    precision: str
    engine: str
    num_clicks: int
    threads: int  # of each worker process
    fingerprint: str  # of the network
    digest: str  # of everything but the case that the scores depend on


class NetworkFacts(NamedTuple):
    """Facts about a network, for use without the network itself."""

    name: str
    fingerprint: str
    resolution: int  # edge of its input in voxels
    encoder_parameters: int
    parameters: int

    @classmethod
    def of(cls, model: Sam3D) -> "NetworkFacts":
        """Return the facts of a network."""
        return cls(
            name=model.config.network,
            fingerprint=fingerprint(model),
            resolution=model.config.encoder.img_size,
            encoder_parameters=sum(p.numel() for p in model.image_encoder.parameters()),
            parameters=sum(p.numel() for p in model.parameters()),
        )

    @property
    def edges(self) -> str:
        """The input's size in words, such as ``128³``."""
        return f"{self.resolution}³"


class Overlay(NamedTuple):
    """A picture of a case for the report."""

    case: str
    title: str  # what is drawn, in a line
    png_bytes: bytes


class Section(NamedTuple):
    """A table of the report with its title."""

    title: str
    note: str  # what the columns mean
    rows: list[dict[str, str]]  # at least one, all with the same columns; the first one is text


@dataclass(frozen=True)
class ScoreJob(ABC):
    """One case to score."""

    case: str  # unique in the run; a relative path without a suffix
    out_dir: Path
    settings: RunSettings
    protocol: ClassVar[str]  # as in `CaseScore`

    @property
    def score_path(self) -> Path:
        """Where the scores are kept."""
        return self.out_dir / "cases" / f"{self.case}.json"

    @property
    def log_path(self) -> Path:
        """Where the traceback is written if scoring fails by a defect."""
        return self.out_dir / "cases" / f"{self.case}.log"

    @property
    @abstractmethod
    def outputs(self) -> tuple[Path, ...]:
        """The files that scoring leaves beside the scores."""

    @property
    @abstractmethod
    def sources(self) -> tuple[Path, ...]:
        """The files that the scores depend on."""

    def key(self) -> dict:
        """Return the settings and file stamps that kept scores must match to be used again."""
        return {"settings": self.settings.digest, "files": [stamp(path) for path in self.sources]}

    def states(self) -> dict[str, list]:
        """Return bytes and modification time of each output, by its path in the output folder.

        Raises:
            InputError: an output is not there.
        """
        return {str(path.relative_to(self.out_dir)): stamp(path)[1:3] for path in self.outputs}

    @abstractmethod
    def make_ready(self) -> None:
        """Open the run's network, once in each process.

        An unusable network then ends the run, and does not count as the failure of a case.

        Raises:
            InputError: the network cannot be opened, or its file was replaced during the run.
        """

    @abstractmethod
    def score(self) -> CaseScore:
        """Score the case and write the outputs.

        Raises:
            WriteError: an output cannot be written.
            InputError: the case cannot be read or used.
        """

    @abstractmethod
    def overlay(self, score: CaseScore) -> Overlay | None:
        """Draw the case's worst target from its outputs; None where they were not written."""


@dataclass(frozen=True)
class Finished:
    """A validation whose cases are scored."""

    network: NetworkFacts
    scores: list[CaseScore]  # in the order of the jobs
    failures: dict[str, str]  # case -> message
    trained_on: set[str] | None  # the "organ/data set" folders of the training; None: unknown
    settings: RunSettings
    out_dir: Path


class Summary(ABC):
    """The result of a validation; ``str`` returns the text that the script prints."""

    @property
    @abstractmethod
    def failure_lines(self) -> list[str]:
        """One line for each case that could not be scored."""

    @property
    @abstractmethod
    def notes(self) -> Sequence[str]:
        """Lines that the report shows beside its tables."""

    @property
    def sections(self) -> Sequence[Section]:
        """Further tables of the report."""
        return ()


class ValidationProtocol(ABC):
    """A validation protocol with its flags.

    Raises:
        InputError: a flag that the protocol needs is missing.
    """

    @abstractmethod
    def __init__(self, args: argparse.Namespace) -> None: ...

    @property
    @abstractmethod
    def options(self) -> list:
        """Further values that scores depend on, beside case, network and `RunSettings`; JSON."""

    @property
    @abstractmethod
    def shown(self) -> Mapping[str, str]:
        """The options as the report shows them."""

    @abstractmethod
    def jobs(self, settings: RunSettings) -> list[ScoreJob]:
        """Find the cases; return a job for each, in the order of the tables.

        Raises:
            InputError: there are none.
        """

    @abstractmethod
    def finish(self, run: Finished) -> Summary:
        """Write the protocol's tables and pictures; return the summary."""
