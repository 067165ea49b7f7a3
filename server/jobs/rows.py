"""Between rows of the tables and records."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, exists, insert, or_, select, update

from adapters.registry.database import Write
from adapters.registry.records import Caller
from server.jobs.errors import NotThere
from server.jobs.records import (
    UNFINISHED,
    Checkpoint,
    EventType,
    Job,
    JobEvent,
    JobRequest,
    Level,
    TrainingFile,
    is_file_id,
    is_job_id,
    part_id,
)
from server.jobs.schema import EVENTS, FILES, JOBS
from training.protocol import Failure
from training.spec import spec_from_json, spec_to_json

MAX_MESSAGE = 2000
MAX_EVENTS = 20_000
"""Events of one job; more metrics are not kept, while messages are."""
_JOB_FIELDS = tuple(name for name in Job.__slots__ if name not in ("request", "error", "result_files"))


def file_of(row: RowMapping) -> TrainingFile:
    return TrainingFile(**row)


def job_of(row: RowMapping) -> Job:
    return Job(
        request=request_from_json(row["request"]),
        error=None if row["error"] is None else Failure.from_json(row["error"]),
        result_files=tuple(row["result_files"]),
        **{name: row[name] for name in _JOB_FIELDS},
    )


def event_of(row: RowMapping) -> JobEvent:
    values = {name: row[name] for name in JobEvent.__slots__ if name != "id"}
    return JobEvent(id=part_id("ftevent", row["job"], row["number"]), **values)


def checkpoint_of(row: RowMapping) -> Checkpoint:
    return Checkpoint(id=part_id("ftckpt", row["job"], row["step"]), **row)


def request_to_json(request: JobRequest) -> dict[str, Any]:
    fields = {name: getattr(request, name) for name in JobRequest.__slots__}
    return {**fields, "spec": spec_to_json(request.spec)}


def request_from_json(found: Mapping[str, Any]) -> JobRequest:
    return JobRequest(**{**found, "spec": spec_from_json(found["spec"])})


def find_file(connection: Connection, file_id: str, caller: Caller) -> TrainingFile:
    """Raises `NotThere` for what is not there any more, and for what is another tenant's."""
    row = None
    if is_file_id(file_id):
        query = select(FILES).where(FILES.c.id == file_id, is_kept(time.time()))
        row = connection.execute(query).mappings().first()
    if row is None or not caller.owns(row["tenant"]):
        raise NotThere(f"No such File object: {file_id[:100]}", "id", "file_not_found")
    return file_of(row)


def is_kept(now: float) -> ColumnElement[bool]:
    """Of a file: its time is not over, or a job needs it that is not over."""
    used = or_(JOBS.c.training_file == FILES.c.id, JOBS.c.validation_file == FILES.c.id)
    needed = exists().where(used, JOBS.c.status.in_(UNFINISHED))
    return or_(FILES.c.expires.is_(None), FILES.c.expires > now, needed)


def find_job(connection: Connection, job_id: str, caller: Caller) -> Job:
    """Raises `NotThere` as `find_file`."""
    row = job_row(connection, job_id)
    if row is None or not caller.owns(row["tenant"]):
        raise NotThere(
            f"Could not find fine tune: {job_id[:100]}", "fine_tuning_job_id", "fine_tune_not_found"
        )
    return job_of(row)


def job_row(connection: Connection, job_id: str) -> RowMapping | None:
    if not is_job_id(job_id):
        return None
    return connection.execute(select(JOBS).where(JOBS.c.id == job_id)).mappings().first()


def change_job(connection: Connection, job_id: str, **values: Any) -> None:
    connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(**values))


def insert_event(
    write: Write,
    job_id: str,
    message: str,
    level: Level = "info",
    type: EventType = "message",
    data: Mapping[str, Any] | None = None,
) -> None:
    """Append to what a job tells. Metrics beyond `MAX_EVENTS` are left out."""
    count = write.connection.execute(select(JOBS.c.events).where(JOBS.c.id == job_id)).scalar_one()
    if type == "metrics" and count >= MAX_EVENTS:
        return
    change_job(write.connection, job_id, events=count + 1)
    write.connection.execute(
        insert(EVENTS).values(
            job=job_id,
            number=count + 1,
            created=write.now,
            level=level,
            type=type,
            message=plain(message),
            data=None if data is None else dict(data),
        )
    )


def error_to_json(error: Failure) -> dict[str, Any]:
    return {
        **asdict(error),
        "message": plain(error.message),
        "details": [plain(text) for text in error.details],
    }


def plain(text: str) -> str:
    """What every database takes: without NUL and without what is no text; cut at `MAX_MESSAGE`."""
    text = text.replace("\0", "").encode(errors="replace").decode()
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."
