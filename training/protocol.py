"""What a server and the process that trains for it say to each other, a JSON object on each line.

To the process: the work, once; then `{"stop": id}` for jobs that are to end early. The end of its input means
that the server is gone.

From the process, each with the `job` it is about: what `training/events.py` has, and

    {"event": "checked", "report": {...}}                      the data is good; `worker.in_brief` of it
    {"event": "gate", ...}                                     what `training/gate.py` says
    {"event": "complete", "folder": ..., "metrics": {...}}     the result is there
    {"event": "stopped"}                                       and can be resumed
    {"event": "failed", "error": {"code", "message", "param", "fault"}}

The first and the last three end a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.spec import TrainSpec, spec_from_json, spec_to_json

Fault = Literal["user", "server"]


@dataclass(frozen=True, slots=True)
class GateWork:
    """What a result must show; `current`: the folder of the version that it would replace."""

    current: Path | None = None
    minimum: float | None = None


@dataclass(frozen=True, slots=True)
class JobWork:
    """One job.

    Attributes:
        folder: of the run; see `training/folder.py`.
        parent: a PEFT folder that it goes on from.
        resume: from the newest checkpoint, if there is one.
        data: name and SHA-256 of its files, for the lineage.
    """

    id: str
    folder: Path
    train: Path
    spec: TrainSpec
    validation: Path | None = None
    parent: Path | None = None
    resume: bool = False
    gate: GateWork | None = None
    data: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """What one process does: a job, or several that train together.

    Attributes:
        memory_bytes: that the process may take, its libraries included; None: all there is.
        nice: how much it stands back behind others (nice(2)).
        check: only look whether the data is good.
    """

    base: str
    threads: int
    jobs: tuple[JobWork, ...]
    memory_bytes: int | None = None
    nice: int = 19
    check: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ended. `param`: the field of the request that is to blame; `fault`: whose it is."""

    code: str
    message: str
    param: str | None = None
    fault: Fault = "server"
    details: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Failure:
        return cls(**{**found, "details": tuple(found.get("details", ()))})


def work_to_json(work: Work) -> dict[str, Any]:
    """A JSON object; `work_from_json` reads it."""
    return {**asdict(work), "jobs": [_job_to_json(job) for job in work.jobs]}


def work_from_json(found: Mapping[str, Any]) -> Work:
    """What `work_to_json` made."""
    return Work(**{**found, "jobs": tuple(map(_job_from_json, found["jobs"]))})


def _job_to_json(job: JobWork) -> dict[str, Any]:
    return {
        "id": job.id,
        "folder": str(job.folder),
        "train": str(job.train),
        "spec": spec_to_json(job.spec),
        "validation": _text(job.validation),
        "parent": _text(job.parent),
        "resume": job.resume,
        "gate": job.gate and {"current": _text(job.gate.current), "minimum": job.gate.minimum},
        "data": [{"name": name, "sha256": sha256} for name, sha256 in job.data],
    }


def _job_from_json(found: Mapping[str, Any]) -> JobWork:
    gate = found["gate"]
    return JobWork(
        id=found["id"],
        folder=Path(found["folder"]),
        train=Path(found["train"]),
        spec=spec_from_json(found["spec"]),
        validation=_path(found["validation"]),
        parent=_path(found["parent"]),
        resume=found["resume"],
        gate=gate and GateWork(_path(gate["current"]), gate["minimum"]),
        data=tuple((file["name"], file["sha256"]) for file in found["data"]),
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
