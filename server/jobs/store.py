"""Jobs from both sides: those who ask for them, here, and those who work on them, in `queue.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, delete, exists, func, insert, or_, select, tuple_

from adapters.errors import AdapterConflict
from adapters.registry.database import Database, Write
from adapters.registry.records import Caller
from adapters.registry.rows import quota_of
from server.jobs.errors import Conflict, JobError, NotThere, OverQuota
from server.jobs.queue import Queue
from server.jobs.records import (
    UNFINISHED,
    Checkpoint,
    Job,
    JobEvent,
    JobRequest,
    Status,
    TrainingFile,
    new_id,
    part_number,
)
from server.jobs.rows import (
    change_job,
    checkpoint_of,
    event_of,
    find_file,
    find_job,
    insert_event,
    job_of,
    request_to_json,
)
from server.jobs.schema import CHECKPOINTS, EVENTS, FILES, JOBS, LABELS

MAX_UNFINISHED = 1000
"""Jobs of one tenant that are not over."""


class Jobs(Queue):
    """The fine-tuning jobs of a database. What belongs to another tenant answers as what never existed.

    Args:
        database, replica, base_digest: as `Queue`.
        max_unfinished: of one tenant.
    """

    def __init__(
        self, database: Database, replica: str, base_digest: str, max_unfinished: int = MAX_UNFINISHED
    ) -> None:
        super().__init__(database, replica, base_digest)
        self._most = max_unfinished

    def create(self, caller: Caller, request: JobRequest, job_id: str | None = None) -> Job:
        """A new job, in state `validating_files`.

        Args:
            job_id: one that `new_id` made, if the caller has to know it before.

        Raises:
            NotThere: there is no such file in the caller's tenant.
            JobError: it is no file to train on.
            Conflict: its two files are on different servers.
            OverQuota: the tenant has as many jobs as it may have.
            TenantNotFound: the tenant was removed meanwhile.
        """
        with self._database.write() as write:
            quota = quota_of(write.connection, caller.tenant).max_jobs
            most = self._most if quota is None else min(self._most, quota)
            _check_count(write.connection, caller.tenant, most)
            files = [_training_file(write.connection, request.training_file, "training_file", caller)]
            if request.validation_file is not None:
                name = "validation_file"
                files.append(_training_file(write.connection, request.validation_file, name, caller))
            job_id = job_id or new_id("ftjob")
            write.connection.execute(insert(JOBS).values(self._row(write, job_id, caller, request, files)))
            for key, value in (request.metadata or {}).items():
                write.connection.execute(insert(LABELS).values(job=job_id, key=key, value=value))
            insert_event(write, job_id, f"Created fine-tuning job: {job_id}")
            insert_event(write, job_id, f"Validating training file: {request.training_file}")
            after: dict[str, object] = {"model": request.model, "name": request.name}
            write.audit(caller, "job.create", job_id, None, after)
            job = find_job(write.connection, job_id, caller)
        self.wake()
        return job

    def get(self, caller: Caller, job_id: str) -> Job:
        """One job.

        Raises:
            NotThere: there is none, or it is another tenant's.
        """
        with self._database.read() as connection:
            return find_job(connection, job_id, caller)

    def list(
        self,
        caller: Caller,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
        no_metadata: bool = False,
    ) -> tuple[Job, ...]:
        """Jobs of the caller's tenant (of all, for an operator), newest first.

        Args:
            after: the id of the last one that was seen.
            metadata: only those that have all of it.
            no_metadata: only those without any.

        Raises:
            NotThere: there is no job `after`.
        """
        query = select(JOBS).order_by(JOBS.c.number.desc()).limit(limit)
        if not caller.operator:
            query = query.where(JOBS.c.tenant == caller.tenant)
        for key, value in (metadata or {}).items():
            same = (LABELS.c.job == JOBS.c.id, LABELS.c.key == key, LABELS.c.value == value)
            query = query.where(exists().where(*same))
        if no_metadata:
            query = query.where(~exists().where(LABELS.c.job == JOBS.c.id))
        with self._database.read() as connection:
            if after is not None:
                query = query.where(JOBS.c.number < find_job(connection, after, caller).number)
            return tuple(map(job_of, connection.execute(query).mappings()))

    def cancel(self, caller: Caller, job_id: str) -> Job:
        """End a job for good; a worker that has it is told. To do it twice changes nothing.

        Raises:
            NotThere: as `get`.
            Conflict: it is over.
        """
        with self._database.write() as write:
            job = find_job(write.connection, job_id, caller)
            if job.status == "cancelled":
                return job
            _check_unfinished(job, "cancelled")
            ended = {"finished": write.now, "keeper": "", "estimated_finish": None}
            return _changed(write, caller, job, "cancelled", "Job cancelled", **ended)

    def pause(self, caller: Caller, job_id: str) -> Job:
        """Stop a job until `resume`; a worker that has it saves where it is.

        Raises:
            NotThere, Conflict: as `cancel`.
        """
        with self._database.write() as write:
            job = find_job(write.connection, job_id, caller)
            if job.status == "paused":
                return job
            _check_unfinished(job, "paused")
            return _changed(write, caller, job, "paused", "Job paused", estimated_finish=None)

    def resume(self, caller: Caller, job_id: str) -> Job:
        """Have a paused job go on; one that is not paused is left as it is.

        Raises:
            NotThere, Conflict: as `cancel`.
        """
        with self._database.write() as write:
            job = find_job(write.connection, job_id, caller)
            _check_unfinished(job, "resumed")
            if job.status != "paused":
                return job
            # The one that was told to stop may not have heard of it yet, or goes on when it has stopped.
            status: Status = "validating_files"
            if job.checked is not None:
                status = "running" if job.replica else "queued"
            resumed = _changed(write, caller, job, status, "Job resumed")
        self.wake()
        return resumed

    def events(
        self, caller: Caller, job_id: str, *, after: str | None = None, limit: int = 20, oldest: bool = False
    ) -> tuple[JobEvent, ...]:
        """What a job told, newest first, or from the `oldest` on; `after`: as in `list`.

        Raises:
            NotThere: there is no such job, or it has no such event.
        """
        with self._database.read() as connection:
            find_job(connection, job_id, caller)
            query = select(EVENTS).where(EVENTS.c.job == job_id).limit(limit)
            place = _place("ftevent", job_id, after)
            rows = connection.execute(_from(query, EVENTS.c.number, place, oldest)).mappings()
            return tuple(map(event_of, rows))

    def checkpoints(
        self, caller: Caller, job_id: str, *, after: str | None = None, limit: int = 10
    ) -> tuple[Checkpoint, ...]:
        """The checkpoints of a job, newest first.

        Raises:
            NotThere: there is no such job, or it has no such checkpoint.
        """
        with self._database.read() as connection:
            find_job(connection, job_id, caller)
            query = select(CHECKPOINTS).where(CHECKPOINTS.c.job == job_id).limit(limit)
            place = _place("ftckpt", job_id, after)
            rows = connection.execute(_from(query, CHECKPOINTS.c.step, place, False)).mappings()
            return tuple(map(checkpoint_of, rows))

    def forget_metrics(self, before: float, limit: int = 1000) -> int:
        """Remove up to `limit` figures of jobs that finished `before` (Unix time); how many it were."""
        old = (EVENTS.c.type == "metrics", JOBS.c.finished < before)
        found = select(EVENTS.c.job, EVENTS.c.number).join(JOBS, JOBS.c.id == EVENTS.c.job).where(*old)
        with self._database.read() as connection:
            keys = [tuple(row) for row in connection.execute(found.limit(limit))]
        if keys:
            with self._database.write() as write:
                gone = delete(EVENTS).where(tuple_(EVENTS.c.job, EVENTS.c.number).in_(keys))
                write.connection.execute(gone)
        return len(keys)

    def forget(self, write: Write, tenant: str) -> None:
        """Remove what is left of a tenant that is removed; see `Tenants.closing`.

        Raises:
            AdapterConflict: it has files, or jobs that are not over.
        """
        execute = write.connection.execute
        file = execute(select(FILES.c.id).where(FILES.c.tenant == tenant)).scalars().first()
        jobs = select(JOBS.c.id).where(JOBS.c.tenant == tenant)
        # Who stops a cancelled one may still tell of it.
        running = or_(JOBS.c.status.in_(UNFINISHED), JOBS.c.replica != "")
        left = file or execute(jobs.where(running)).scalars().first()
        if left is not None:
            raise AdapterConflict(
                f"tenant {tenant!r} still has {left}; delete its files and cancel its jobs first"
            )
        for table in (LABELS, EVENTS, CHECKPOINTS):
            execute(delete(table).where(table.c.job.in_(jobs)))
        execute(delete(JOBS).where(JOBS.c.tenant == tenant))

    def _row(
        self, write: Write, job_id: str, caller: Caller, request: JobRequest, files: Sequence[TrainingFile]
    ) -> dict[str, Any]:
        places = sorted({file.replica for file in files} - {""})
        if len(places) > 1:
            raise Conflict(
                "the training file and the validation file are on different servers; upload both to one"
            )
        return {
            "id": job_id,
            "number": write.revision,
            "tenant": caller.tenant,
            "actor": caller.actor,
            "base_digest": self._base,
            "place": places[0] if places else "",
            "request": request_to_json(request),
            "training_file": request.training_file,
            "validation_file": request.validation_file,
            "status": "validating_files",
            "created": write.now,
            "result_files": [],
            "replica": "",
            "keeper": "",
            "beat": 0.0,
            "attempts": 0,
            "turn": 0,
            "events": 0,
        }


def _training_file(connection: Connection, file_id: str, param: str, caller: Caller) -> TrainingFile:
    """One of the caller's own tenant, even for operators: a job never mixes tenants."""
    try:
        file = find_file(connection, file_id, Caller(caller.tenant))
    except NotThere as error:
        raise NotThere(f"{param}: {error}", param, error.code) from None
    if file.purpose != "fine-tune":
        raise JobError(f"{param}: {file.id} is of purpose {file.purpose}, not fine-tune", param)
    return file


def _check_count(connection: Connection, tenant: str, most: int) -> None:
    query = select(func.count()).select_from(JOBS)
    query = query.where(JOBS.c.tenant == tenant, JOBS.c.status.in_(UNFINISHED))
    if connection.execute(query).scalar_one() >= most:
        raise OverQuota(
            f"tenant {tenant!r} has {most} jobs that are not over, the most it may have; cancel some, or wait"
        )


def _check_unfinished(job: Job, done: str) -> None:
    if job.status not in UNFINISHED:
        raise Conflict(f"{job.id} can't be {done}: it has {job.status} already", code="job_is_over")


def _changed(write: Write, caller: Caller, job: Job, status: Status, message: str, **values: Any) -> Job:
    insert_event(write, job.id, message)
    change_job(write.connection, job.id, status=status, **values)
    action = {"cancelled": "job.cancel", "paused": "job.pause"}.get(status, "job.resume")
    write.audit(caller, action, job.id, {"status": job.status}, {"status": status}, job.tenant)
    return find_job(write.connection, job.id, caller)


def _place(kind: Any, job_id: str, after: str | None) -> int | None:
    number = None if after is None else part_number(kind, job_id, after)
    if after is not None and number is None:
        raise NotThere(f"{job_id} has no {after[:100]!r}", "after")
    return number


def _from(query: Select[Any], column: Any, place: int | None, oldest: bool) -> Select[Any]:
    """In the order of `column`, beyond `place`."""
    query = query.order_by(column if oldest else column.desc())
    if place is None:
        return query
    return query.where(column > place if oldest else column < place)
