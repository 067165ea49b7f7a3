"""What is known of training files and jobs; immutable records."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adapters.registry.names import full_name
from adapters.registry.records import Promote
from training.protocol import Failure
from training.spec import Objective, TrainSpec

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
"""OpenAI's, and `paused`, which its API has a route for and no name."""
UNFINISHED: tuple[Status, ...] = ("validating_files", "queued", "running", "paused")
"""States of the jobs that may still train: they need their files."""
Purpose = Literal["fine-tune", "fine-tune-results"]
"""Of a file: data to train on, or what a job wrote."""
Level = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]
Order = Literal["run", "pause", "cancel", "lost"]
"""What a worker is to do with a job that it has: go on; save and stop; stop; or end it at once and say no
more, as somebody else has it now."""
HEX = 24
_FILE_ID = re.compile(r"file-[0-9a-f]{24}")
_JOB_ID = re.compile(r"ftjob-[0-9a-f]{24}")
_PART_ID = re.compile(r"(ftevent|ftckpt)-([0-9a-f]{16})([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class TrainingFile:
    """One file of a tenant. Its content never changes.

    Attributes:
        filename: what its owner called it; never a path here.
        sha256: of the content, hex.
        created, expires: Unix times in seconds; None: it stays until it is deleted.
        replica: whose data directory has the content; empty: the store that servers share has it.
    """

    id: str
    number: int
    tenant: str
    filename: str
    purpose: Purpose
    bytes: int
    sha256: str
    created: float
    expires: float | None
    replica: str


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What was asked, checked and complete.

    Attributes:
        model: as it was asked: the base, or an adapter to go on from.
        parent: that adapter's version, as `tenant/name@3`; None: the base.
        parent_digest: of its content.
        name: of the adapter that will be published, in the job's tenant.
        hyperparameters: OpenAI's, each a number or `auto`; what is `auto` is settled when the data is known.
        promote: whether the name moves to the result; see the registry's `Promote`.
        gate: whether the result must pass the evaluation gate.
        gate_minimum: the score that it must reach at least.
        most_rank: the rank is chosen when the data is known, and is no higher; None: it was asked.
        alpha_follows: whether alpha goes with that rank.
    """

    model: str
    name: str
    training_file: str
    spec: TrainSpec
    validation_file: str | None = None
    parent: str | None = None
    parent_digest: str | None = None
    suffix: str | None = None
    method: Objective = "supervised"
    hyperparameters: Mapping[str, float | int | str] = field(default_factory=dict)
    promote: Promote = "auto"
    gate: bool = True
    gate_minimum: float | None = None
    metadata: Mapping[str, str] | None = None
    most_rank: int | None = None
    alpha_follows: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it is now.

    Attributes:
        number: newer jobs have higher ones.
        actor: who created it; what it publishes is published in this one's name.
        base_digest: of the base that it is for.
        checked: when its data was found good; None: not yet.
        started, finished, estimated_finish: Unix times in seconds.
        fine_tuned_model: reference of the version that it published.
        replica: which server works on it; empty: none.
        keeper: which server's disk has its newest state; empty: it has not trained, or is over.
        attempts: how often it was taken up since its last checkpoint.
    """

    id: str
    number: int
    tenant: str
    actor: str
    base_digest: str
    request: JobRequest
    status: Status
    created: float
    checked: float | None
    started: float | None
    finished: float | None
    estimated_finish: float | None
    error: Failure | None
    fine_tuned_model: str | None
    trained_tokens: int | None
    result_files: tuple[str, ...]
    replica: str
    keeper: str
    attempts: int

    @property
    def spec(self) -> TrainSpec:
        return self.request.spec

    @property
    def resume(self) -> bool:
        """Whether it ran before, so that there may be a checkpoint to go on from."""
        return self.started is not None

    @property
    def target(self) -> str:
        """Full name of the adapter that it publishes: `name`, or `tenant/name`."""
        return full_name(self.tenant, self.request.name)

    @property
    def checkpoint_name(self) -> str:
        """Full name of the adapter whose versions are its checkpoints."""
        return full_name(self.tenant, self.id)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that a job tells. `data`: of metrics OpenAI's names: `step`, `train_loss` and so on."""

    id: str
    number: int
    created: float
    level: Level
    type: EventType
    message: str
    data: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state of a job that can be asked as the model `model`. `metrics`: OpenAI's names."""

    id: str
    job: str
    step: int
    created: float
    model: str
    metrics: Mapping[str, float | None]


def new_id(kind: Literal["file", "ftjob"]) -> str:
    """A name that nobody can guess and that fits a path."""
    return f"{kind}-{secrets.token_hex(HEX // 2)}"


def is_file_id(text: str) -> bool:
    """Whether it may be a file, so that nothing else ever becomes a path or a query."""
    return _FILE_ID.fullmatch(text) is not None


def is_job_id(text: str) -> bool:
    """The same of a job."""
    return _JOB_ID.fullmatch(text) is not None


def part_id(kind: Literal["ftevent", "ftckpt"], job: str, number: int) -> str:
    """Of the event with this number, or of the checkpoint at this step."""
    return f"{kind}-{job.removeprefix('ftjob-')[:16]}{number:08x}"


def part_number(kind: Literal["ftevent", "ftckpt"], job: str, text: str) -> int | None:
    """The number in an id that `part_id` made for this job; None: it did not."""
    match = _PART_ID.fullmatch(text)
    if match is None or match[1] != kind or match[2] != job.removeprefix("ftjob-")[:16]:
        return None
    return int(match[3], 16)
