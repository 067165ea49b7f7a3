"""Who works on which job: claims that are transactions, fair between tenants, and given up by the silent.

A job that somebody works on has that server's name in `replica`. Only that server may tell of it, until it
gives the claim back or is silent for `LOST_SECONDS`. A job that is paused or cancelled changes its status at
once and keeps its claim until the worker has stopped, so that nobody else begins with the same job before.

All changes are serial, on both databases and across servers (see `Database`), so no two claim one job.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, delete, func, insert, or_, select

from adapters.registry.database import Database, Write
from server.jobs.records import Checkpoint, EventType, Job, JobRequest, Level, Order, part_id
from server.jobs.rows import change_job, error_to_json, insert_event, job_of, job_row, request_to_json
from server.jobs.schema import CHECKPOINTS, JOBS
from training.protocol import Failure

LOST_SECONDS = 60.0
"""After so long without a heartbeat a claim is given to others. By the clocks of the servers."""
MAX_ATTEMPTS = 5
"""Claims of a job that may end without a word, and without a new checkpoint, before it has failed."""
_LOST = Failure("worker_lost", f"the process that trained the job ended {MAX_ATTEMPTS} times without a word")

Along = Callable[[Write], None]
"""Writes what is written together with a job's end, or not at all."""


def nothing(write: Write) -> None:
    """Writes no more than that."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """What `JobEvent` has, before it has a number."""

    message: str
    level: Level = "info"
    type: EventType = "message"
    data: Mapping[str, Any] | None = None


class Queue:
    """The jobs of a database from the side of who works on them. Safe from any thread.

    Methods that take a job's id do nothing and return False if this server has no claim on it (any more).

    Args:
        replica: this server, as `DataDir` names it.
        base_digest: what it can train on.

    Attributes:
        wake: called, from any thread, after something has come to `claim` or to `claim_check`.
    """

    def __init__(self, database: Database, replica: str, base_digest: str) -> None:
        self._database, self.replica, self._base = database, replica, base_digest
        self._opened = time.time()
        self.wake: Callable[[], None] = lambda: None

    def recover(self) -> tuple[str, ...]:
        """At the start: what this server worked on when it ended waits again."""
        before = and_(JOBS.c.replica == self.replica, JOBS.c.beat < self._opened)
        with self._database.write() as write:
            found = write.connection.execute(select(JOBS).where(before)).mappings().all()
            for row in found:
                _lose(write, row, "The server was started again.")
        return tuple(row["id"] for row in found)

    def claim(self, limit: int = 1, accept: Callable[[Job], bool] = lambda job: True) -> tuple[Job, ...]:
        """Take up to `limit` queued jobs, now `running`; call `heartbeat` before, and often after.

        The next one is the oldest of the tenant that has the fewest running, and among those of the tenant
        that was served longest ago: nobody waits behind another tenant's hundred.

        Args:
            accept: whether a job is taken now; it waits on otherwise.
        """
        if limit < 1 or not self._is_any("queued"):
            return ()
        with self._database.write() as write:
            self._expire(write)
            claimed: list[Job] = []
            waiting = _Waiting(write.connection, self._claimable("queued"))
            while len(claimed) < limit and (job := waiting.take(accept)) is not None:
                insert_event(
                    write, job.id, "Fine-tuning job started" if not job.resume else "The job goes on"
                )
                self._hold(
                    write, job, status="running", started=job.started or write.now, turn=write.revision
                )
                claimed.append(_load(write.connection, job.id))
        return tuple(claimed)

    def claim_check(self, but: Collection[str] = ()) -> Job | None:
        """Take a job whose files nobody has looked at yet; end with `checked` or `fail`.

        It is the oldest of the tenant that has the fewest looked at now.

        Args:
            but: ids of jobs that are left for later.
        """
        if not self._is_any("validating_files"):
            return None
        with self._database.write() as write:
            self._expire(write)
            waiting = and_(self._claimable("validating_files"), JOBS.c.id.not_in([*but]))
            number = _next_check(write.connection, waiting)
            if number is None:
                return None
            query = select(JOBS).where(waiting, JOBS.c.number == number)
            row = write.connection.execute(query).mappings().one()
            self._hold(write, job_of(row))
            return _load(write.connection, row["id"])

    def heartbeat(self, ids: Collection[str], finish: Mapping[str, float] | None = None) -> dict[str, Order]:
        """Keep the claims on these jobs; what is to be done with each.

        Args:
            finish: when they will probably be done, Unix time in seconds.
        """
        if not ids:
            return {}
        orders: dict[str, Order] = dict.fromkeys(ids, "lost")
        with self._database.write() as write:
            for job_id in ids:
                row = self._mine(write, job_id)
                if row is not None:
                    values = {"estimated_finish": finish[job_id]} if finish and job_id in finish else {}
                    change_job(write.connection, job_id, beat=write.now, **values)
                    orders[job_id] = _ORDERS.get(row["status"], "run")
        return orders

    def checked(self, job_id: str, request: JobRequest) -> bool:
        """The files are good; `request` is what it was with all that was `auto` settled."""
        with self._database.write() as write:
            row = self._mine(write, job_id)
            if row is None:
                return False
            values: dict[str, Any] = {"replica": "", "attempts": 0}
            if row["status"] in ("validating_files", "paused"):
                values |= {"checked": write.now, "request": request_to_json(request)}
                insert_event(write, job_id, "Files validated")
            if row["status"] == "validating_files":
                values["status"] = "queued"
            change_job(write.connection, job_id, **values)
        self.wake()
        return True

    def add_event(
        self,
        job_id: str,
        level: Level,
        message: str,
        type: EventType = "message",
        data: Mapping[str, Any] | None = None,
    ) -> bool:
        """Append to what the job tells."""
        return self.add_events(job_id, [NewEvent(message, level, type, data)])

    def add_events(self, job_id: str, events: Sequence[NewEvent]) -> bool:
        """The same for several, in one transaction."""
        with self._database.write() as write:
            if self._mine(write, job_id) is None:
                return False
            for event in events:
                insert_event(write, job_id, event.message, event.level, event.type, event.data)
        return True

    def add_checkpoint(
        self, job_id: str, step: int, model: str, metrics: Mapping[str, float | None]
    ) -> Checkpoint | None:
        """Note a checkpoint that can be asked as `model`; one of the same step is replaced."""
        values = {"job": job_id, "step": step, "model": model, "metrics": dict(metrics)}
        with self._database.write() as write:
            if self._mine(write, job_id) is None:
                return None
            columns = CHECKPOINTS.c
            write.connection.execute(delete(CHECKPOINTS).where(columns.job == job_id, columns.step == step))
            write.connection.execute(insert(CHECKPOINTS).values(created=write.now, **values))
            change_job(write.connection, job_id, attempts=0)
            insert_event(write, job_id, f"Checkpoint created at step {step} with name: {model}")
        return Checkpoint(part_id("ftckpt", job_id, step), job_id, step, write.now, model, dict(metrics))

    def succeed(
        self,
        job_id: str,
        fine_tuned_model: str,
        trained_tokens: int | None = None,
        result_files: Sequence[str] = (),
        along: Along = nothing,
    ) -> bool:
        """The result is published. False also where the job was cancelled before: then take it back."""
        with self._database.write() as write:
            row = self._mine(write, job_id)
            if row is None or row["status"] not in ("running", "paused"):
                return False
            insert_event(write, job_id, f"New fine-tuned model created: {fine_tuned_model}")
            insert_event(write, job_id, "The job has successfully completed")
            _end(
                write,
                job_id,
                "succeeded",
                fine_tuned_model=fine_tuned_model,
                trained_tokens=trained_tokens,
                result_files=list(result_files),
            )
            along(write)
        return True

    def fail(
        self, job_id: str, error: Failure, result_files: Sequence[str] = (), along: Along = nothing
    ) -> bool:
        """It can't be done, and whose fault that is."""
        with self._database.write() as write:
            row = self._mine(write, job_id)
            if row is None or row["status"] == "cancelled":
                return False
            _fail(write, job_id, error, result_files)
            along(write)
        return True

    def stopped(self, job_id: str) -> bool:
        """The worker has saved and stopped as told, or because the server ends: a running job waits again."""
        with self._database.write() as write:
            row = self._mine(write, job_id)
            if row is None:
                return False
            _release(write, row, attempts=max(0, row["attempts"] - 1))
        self.wake()
        return True

    def lost(self, job_id: str, reason: str) -> bool:
        """The worker ended without a word: the job waits again, or has failed after `MAX_ATTEMPTS`."""
        with self._database.write() as write:
            row = self._mine(write, job_id)
            if row is None:
                return False
            _lose(write, row, reason)
        self.wake()
        return True

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status, of all tenants and bases."""
        with self._database.read() as connection:
            return _pairs(connection, select(JOBS.c.status, func.count()).group_by(JOBS.c.status))

    def _is_any(self, status: str) -> bool:
        """Whether to begin a transaction at all."""
        stale = and_(JOBS.c.replica != "", JOBS.c.beat < _stale())
        with self._database.read() as connection:
            found = connection.execute(select(JOBS.c.id).where(or_(self._claimable(status), stale)).limit(1))
            return found.first() is not None

    def _claimable(self, status: str) -> Any:
        return and_(
            JOBS.c.status == status,
            JOBS.c.replica == "",
            JOBS.c.base_digest == self._base,
            JOBS.c.place.in_(("", self.replica)),
        )

    def _expire(self, write: Write) -> None:
        """Take the claims of servers that are silent. Our own are ours to know of."""
        silent = and_(JOBS.c.replica.not_in(("", self.replica)), JOBS.c.beat < _stale(write.now))
        for row in write.connection.execute(select(JOBS).where(silent)).mappings().all():
            _lose(write, row, "The server that worked on it is silent.")

    def _hold(self, write: Write, job: Job, **values: Any) -> None:
        claim = {"replica": self.replica, "beat": write.now, "attempts": job.attempts + 1}
        change_job(write.connection, job.id, **claim, **values)

    def _mine(self, write: Write, job_id: str) -> RowMapping | None:
        row = job_row(write.connection, job_id)
        return row if row is not None and row["replica"] == self.replica else None


class _Waiting:
    """Jobs that may be claimed, in fair turns."""

    def __init__(self, connection: Connection, claimable: Any) -> None:
        self._connection = connection
        self._queues: dict[str, list[str]] = {}
        for row in connection.execute(
            select(JOBS.c.id, JOBS.c.tenant).where(claimable).order_by(JOBS.c.number.desc())
        ):
            self._queues.setdefault(row.tenant, []).append(row.id)  # the oldest at the end
        held = select(JOBS.c.tenant, func.count()).where(JOBS.c.replica != "", JOBS.c.started.is_not(None))
        self._running = Counter(_pairs(connection, held.group_by(JOBS.c.tenant)))
        turns = select(JOBS.c.tenant, func.max(JOBS.c.turn)).where(JOBS.c.tenant.in_(self._queues))
        self._turns = _pairs(connection, turns.group_by(JOBS.c.tenant))

    def take(self, accept: Callable[[Job], bool]) -> Job | None:
        """The next one; those that are not accepted are not asked about again."""
        while self._queues:
            tenant = min(self._queues, key=lambda name: (self._running[name], self._turns[name], name))
            queue = self._queues[tenant]
            job = _load(self._connection, queue.pop())
            if not queue:
                del self._queues[tenant]
            if accept(job):
                self._running[tenant] += 1
                return job
        return None


def _next_check(connection: Connection, waiting: ColumnElement[bool]) -> int | None:
    """The number of the job whose turn it is; None if none waits."""
    going_on = and_(JOBS.c.status == "validating_files", JOBS.c.replica != "")
    held = _pairs(connection, select(JOBS.c.tenant, func.count()).where(going_on).group_by(JOBS.c.tenant))
    oldest = select(JOBS.c.tenant, func.min(JOBS.c.number)).where(waiting).group_by(JOBS.c.tenant)
    turns = [(held.get(tenant, 0), number) for tenant, number in _pairs(connection, oldest).items()]
    return min(turns)[1] if turns else None


_ORDERS: Mapping[str, Order] = {"paused": "pause", "cancelled": "cancel"}


def _pairs(connection: Connection, query: Select[Any]) -> dict[str, int]:
    return {row[0]: row[1] for row in connection.execute(query)}


def _stale(now: float | None = None) -> float:
    return (time.time() if now is None else now) - LOST_SECONDS


def _load(connection: Connection, job_id: str) -> Job:
    row = job_row(connection, job_id)
    assert row is not None
    return job_of(row)


def _lose(write: Write, row: RowMapping, reason: str) -> None:
    """A claim ended without a word of who had it."""
    if row["status"] in ("running", "validating_files") and row["attempts"] >= MAX_ATTEMPTS:
        _fail(write, row["id"], _LOST)
        return
    insert_event(write, row["id"], f"{reason} The job waits for its next turn.", "warn")
    _release(write, row)


def _release(write: Write, row: RowMapping, **values: Any) -> None:
    if row["status"] == "running":
        values["status"] = "queued"
    change_job(write.connection, row["id"], replica="", estimated_finish=None, **values)


def _fail(write: Write, job_id: str, error: Failure, result_files: Sequence[str] = ()) -> None:
    insert_event(write, job_id, error.message, "error", data={"code": error.code, "fault": error.fault})
    _end(write, job_id, "failed", error=error_to_json(error), result_files=list(result_files))


def _end(write: Write, job_id: str, status: str, **values: Any) -> None:
    ended = {"finished": write.now, "replica": "", "estimated_finish": None}
    change_job(write.connection, job_id, status=status, **ended, **values)
