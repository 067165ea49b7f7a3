"""Who works on which job: claims that are transactions, fair between tenants, and given up by the silent.

A job that somebody works on has that server's name in `replica`. Only that server may tell of it, until it
gives the claim back or is silent for `LOST_SECONDS`. A job that is paused or cancelled changes its status at
once and keeps its claim until the worker has stopped, so that nobody else begins with the same job before.

Of a job that has trained `keeper` says whose disk has its newest state. The others leave it alone as long as
that server lives: they would have to begin it anew.

All changes are serial, on both databases and across servers (see `Database`), so no two claim one job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, delete, func, insert, or_, select, update

from adapters.registry.database import Database, Write
from server.jobs.records import Checkpoint, EventType, Job, JobRequest, Level, Order, part_id
from server.jobs.rows import change_job, error_to_json, insert_event, job_of, job_row, request_to_json
from server.jobs.schema import CHECKPOINTS, JOBS
from server.jobs.turns import Turn, Waiting, next_check, pairs, whose_turn
from training.protocol import Failure

LOST_SECONDS = 60.0
"""After so long without a heartbeat a claim is given to others. By the clocks of the servers."""
KEEP_SECONDS = 15.0
"""Between two signs of life for the jobs that a server keeps and does not work on."""
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
        """At the start: what this server worked on when it ended waits again, and is kept for it."""
        before = and_(JOBS.c.replica == self.replica, JOBS.c.beat < self._opened)
        with self._database.write() as write:
            found = write.connection.execute(select(JOBS).where(before)).mappings().all()
            for row in found:
                _lose(write, row, "The server was started again.")
            _beat(write, self._kept())
        return tuple(row["id"] for row in found)

    def claim(self, limit: int = 1, accept: Callable[[Job], bool] = lambda job: True) -> tuple[Job, ...]:
        """Take up to `limit` queued jobs, now `running`; call `heartbeat` before, and often after.

        They are taken in turns (`Waiting`): nobody waits behind another tenant's hundred.

        Args:
            accept: whether a job is taken now; it waits on otherwise.
        """
        if limit < 1 or not self._is_any("queued"):
            return ()
        with self._database.write() as write:
            self._expire(write)
            claimed: list[Job] = []
            waiting = Waiting(write.connection, self._claimable("queued"))
            while len(claimed) < limit and (job := waiting.take(accept)) is not None:
                self._tell_start(write, job)
                values = {"status": "running", "keeper": self.replica, "turn": write.revision}
                self._hold(write, job, started=job.started or write.now, **values)
                claimed.append(_load(write.connection, job.id))
        return tuple(claimed)

    def claim_check(self, but: Collection[str] = ()) -> Job | None:
        """Take a job whose files nobody has looked at yet (`next_check`); end with `checked` or `fail`.

        Args:
            but: ids of jobs that are left for later.
        """
        if not self._is_any("validating_files"):
            return None
        with self._database.write() as write:
            self._expire(write)
            waiting = and_(self._claimable("validating_files"), JOBS.c.id.not_in([*but]))
            number = next_check(write.connection, waiting)
            if number is None:
                return None
            query = select(JOBS).where(waiting, JOBS.c.number == number)
            row = write.connection.execute(query).mappings().one()
            self._hold(write, job_of(row))
            return _load(write.connection, row["id"])

    def heartbeat(self, ids: Collection[str], finish: Mapping[str, float] | None = None) -> dict[str, Order]:
        """Keep the claims on these jobs, as `keep` does for others; what is to be done with each.

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
            _beat(write, self._kept(write.now - KEEP_SECONDS))
        return orders

    def keep(self) -> None:
        """Say that this server lives, for the waiting and paused jobs whose state it has; call it often."""
        late = self._kept(time.time() - KEEP_SECONDS)
        with self._database.read() as connection:
            if connection.execute(select(JOBS.c.id).where(late).limit(1)).first() is None:
                return
        with self._database.write() as write:
            _beat(write, late)

    def whose_turn(self, ids: Collection[str], joins: Callable[[Job], bool] | None = None) -> Turn:
        """Whether jobs that this server has trained for a while stop for `others`; `again` is a new turn.

        Args:
            joins: whether a job that waits could train together with them; None: there is no room.
        """
        with self._database.read() as connection:
            turn = whose_turn(connection, self._claimable("queued"), ids, joins)
        if turn == "again":
            mine = and_(JOBS.c.id.in_([*ids]), JOBS.c.replica == self.replica)
            with self._database.write() as write:
                write.connection.execute(update(JOBS).where(mine).values(turn=write.revision))
        return turn

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

    def stopped(self, job_id: str, *, for_others: bool = False) -> bool:
        """The worker has saved and stopped as told, or because the server ends: a running job waits again.

        Args:
            for_others: it gave way to others that wait.
        """
        with self._database.write() as write:
            row = self._mine(write, job_id)
            if row is None:
                return False
            if for_others and row["status"] == "running":
                insert_event(write, job_id, "The job waits for its next turn: others wait too.")
            _release(write, row, attempts=max(0, row["attempts"] - 1), beat=write.now)
        self.wake()
        return True

    def lost(self, job_id: str, reason: str) -> bool:
        """The worker ended without a word: the job waits again, or has failed after `MAX_ATTEMPTS`."""
        with self._database.write() as write:
            row = self._mine(write, job_id)
            if row is None:
                return False
            _lose(write, row, reason, beat=write.now)
        self.wake()
        return True

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status, of all tenants and bases."""
        with self._database.read() as connection:
            return pairs(connection, select(JOBS.c.status, func.count()).group_by(JOBS.c.status))

    def _is_any(self, status: str) -> bool:
        """Whether to begin a transaction at all."""
        found = select(JOBS.c.id).where(or_(self._claimable(status), self._silent())).limit(1)
        with self._database.read() as connection:
            return connection.execute(found).first() is not None

    def _claimable(self, status: str) -> ColumnElement[bool]:
        return and_(
            JOBS.c.status == status,
            JOBS.c.replica == "",
            JOBS.c.base_digest == self._base,
            JOBS.c.place.in_(("", self.replica)),
            or_(JOBS.c.keeper.in_(("", self.replica)), JOBS.c.beat < time.time() - LOST_SECONDS),
        )

    def _silent(self) -> ColumnElement[bool]:
        """Claims of servers that are silent. Our own are ours to know of."""
        late = JOBS.c.beat < time.time() - LOST_SECONDS
        return and_(JOBS.c.replica.not_in(("", self.replica)), late)

    def _kept(self, before: float | None = None) -> ColumnElement[bool]:
        """Jobs that wait for this server, or are paused, with their state on its disk.

        Args:
            before: only those for which it gave its last sign of life before this.
        """
        kept = and_(
            JOBS.c.status.in_(("queued", "paused")),
            JOBS.c.replica == "",
            JOBS.c.keeper == self.replica,
            JOBS.c.base_digest == self._base,
        )
        return kept if before is None else and_(kept, JOBS.c.beat < before)

    def _expire(self, write: Write) -> None:
        """Take the claims of servers that are silent."""
        for row in write.connection.execute(select(JOBS).where(self._silent())).mappings().all():
            _lose(write, row, "The server that worked on it is silent.")

    def _tell_start(self, write: Write, job: Job) -> None:
        if job.keeper not in ("", self.replica):
            text = "The server that has the job's state is silent: the job begins anew on another."
            insert_event(write, job.id, text, "warn")
        else:
            insert_event(write, job.id, "The job goes on" if job.resume else "Fine-tuning job started")

    def _hold(self, write: Write, job: Job, **values: Any) -> None:
        claim = {"replica": self.replica, "beat": write.now, "attempts": job.attempts + 1}
        change_job(write.connection, job.id, **claim, **values)

    def _mine(self, write: Write, job_id: str) -> RowMapping | None:
        row = job_row(write.connection, job_id)
        return row if row is not None and row["replica"] == self.replica else None


_ORDERS: Mapping[str, Order] = {"paused": "pause", "cancelled": "cancel"}


def _beat(write: Write, jobs: ColumnElement[bool]) -> None:
    """Note that the server that has these lives."""
    write.connection.execute(update(JOBS).where(jobs).values(beat=write.now))


def _load(connection: Connection, job_id: str) -> Job:
    row = job_row(connection, job_id)
    assert row is not None
    return job_of(row)


def _lose(write: Write, row: RowMapping, reason: str, **values: Any) -> None:
    """A claim ended without a word of who had it."""
    if row["status"] in ("running", "validating_files") and row["attempts"] >= MAX_ATTEMPTS:
        _fail(write, row["id"], _LOST)
        return
    insert_event(write, row["id"], f"{reason} The job waits for its next turn.", "warn")
    _release(write, row, **values)


def _release(write: Write, row: RowMapping, **values: Any) -> None:
    if row["status"] == "running":
        values["status"] = "queued"
    change_job(write.connection, row["id"], replica="", estimated_finish=None, **values)


def _fail(write: Write, job_id: str, error: Failure, result_files: Sequence[str] = ()) -> None:
    insert_event(write, job_id, error.message, "error", data={"code": error.code, "fault": error.fault})
    _end(write, job_id, "failed", error=error_to_json(error), result_files=list(result_files))


def _end(write: Write, job_id: str, status: str, **values: Any) -> None:
    ended = {"finished": write.now, "replica": "", "keeper": "", "estimated_finish": None}
    change_job(write.connection, job_id, status=status, **ended, **values)
