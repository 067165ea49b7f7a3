"""The queue does what a plain list would, after any sequence of calls by two servers, on both databases.

Servers claim, tell, give way, fall silent and start again; tenants create, cancel, pause and resume. Each
call goes to the queue and to the model, which must say the same, and then all jobs are compared. At the end
every job that is neither over nor paused can be claimed: none is lost.

`MACHINE_EXAMPLES=300` looks further, by chance.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import and_, delete, or_, update

from adapters.registry.records import LOCAL, Caller
from server.jobs.errors import Conflict
from server.jobs.queue import LOST_SECONDS, MAX_ATTEMPTS
from server.jobs.records import UNFINISHED, TrainingFile
from server.jobs.schema import CHECKPOINTS, EVENTS, JOBS, LABELS
from server.jobs.store import Jobs
from tests.server.jobs.world import ACME, BASE, OTHER, Site, request, sites
from training.protocol import Failure

LONGER = int(os.environ.get("MACHINE_EXAMPLES", "0"))
FAILURE = Failure("diverged", "the loss is not finite", "training", "user")
WHO = st.sampled_from([ACME, ACME, OTHER])
SERVER = st.integers(0, 1)
PICK = st.integers(0, 9)


@dataclass
class Entry:
    """A job as the model has it. `silent`: whoever holds or keeps it has not been heard of for long."""

    id: str
    tenant: str
    status: str = "validating_files"
    holder: str = ""
    keeper: str = ""
    silent: bool = False
    checked: bool = False
    started: bool = False
    attempts: int = 0
    turn: int = 0

    def free(self) -> None:
        self.holder = ""
        if self.status == "running":
            self.status = "queued"

    def lose(self) -> None:
        if self.status in ("running", "validating_files") and self.attempts >= MAX_ATTEMPTS:
            self.end("failed")
        else:
            self.free()

    def end(self, status: str) -> None:
        self.status, self.holder, self.keeper = status, "", ""

    def hold(self, server: str) -> None:
        self.holder, self.silent = server, False
        self.attempts += 1

    def tell(self) -> tuple[object, ...]:
        return self.status, self.holder, self.keeper, self.checked, self.started, self.attempts

    def waits_for(self, server: str) -> bool:
        return self.tell()[:2] == ("queued", "") and (self.keeper in ("", server) or self.silent)


class Model:
    """Jobs in the order in which they came."""

    def __init__(self) -> None:
        self.jobs: list[Entry] = []
        self.turns = 0

    def expire(self, server: str) -> None:
        for entry in self.jobs:
            if entry.silent and entry.holder not in ("", server):
                entry.lose()

    def keep(self, server: str) -> None:
        for entry in self.jobs:
            if entry.keeper == server and not entry.holder and entry.status in ("queued", "paused"):
                entry.silent = False

    def next(self, server: str, served: dict[str, int], released: list[Entry]) -> Entry | None:
        """The next job to claim, if those that are released were queued."""
        waiting = [entry for entry in self.jobs if entry.waits_for(server) or entry in released]
        runs = [entry for entry in self.jobs if entry.holder and entry.started and entry not in released]
        busy = Counter(entry.tenant for entry in runs)
        return min(
            waiting, key=lambda entry: (busy[entry.tenant], served[entry.tenant], entry.tenant), default=None
        )

    def whose_turn(self, server: str, group: list[Entry], joins: bool) -> str:
        waiting = [entry for entry in self.jobs if entry.waits_for(server)]
        own = {entry.tenant for entry in group}
        strangers = {entry.tenant for entry in waiting} - own
        first = self.next(server, self.served(), group)
        if strangers and first is not None and first.tenant not in own:
            return "others"
        if waiting and joins:
            return "others"
        return "again" if strangers else "free"

    def claim_check(self, server: str) -> str | None:
        self.expire(server)
        waiting = [entry for entry in self.jobs if entry.tell()[:2] == ("validating_files", "")]
        if not waiting:
            return None
        held = Counter(
            entry.tenant for entry in self.jobs if entry.holder and entry.status == waiting[0].status
        )
        first = min(waiting, key=lambda entry: held[entry.tenant])
        first.hold(server)
        return first.id

    def claim(self, server: str, limit: int) -> list[str]:
        self.expire(server)
        self.turns += 1
        claimed: list[str] = []
        served = self.served()
        while len(claimed) < limit and (entry := self.next(server, served, [])) is not None:
            entry.hold(server)
            entry.status, entry.started, entry.keeper, entry.turn = "running", True, server, self.turns
            claimed.append(entry.id)
        return claimed

    def served(self) -> dict[str, int]:
        """When each tenant had its last turn."""
        found = dict.fromkeys(("acme", "other"), 0)
        for entry in self.jobs:
            found[entry.tenant] = max(found[entry.tenant], entry.turn)
        return found


class Machine(RuleBasedStateMachine):
    """Two servers and two tenants."""

    pair: tuple[Site, ...]
    files: dict[str, TrainingFile]

    @initialize()
    def begins(self) -> None:
        with self.pair[0].database.write() as write:
            for table in (JOBS, EVENTS, CHECKPOINTS, LABELS):
                write.connection.execute(delete(table))
        self.queues = [site.jobs for site in self.pair]
        self.model = Model()
        self.over: dict[str, str] = {}

    def pick(self, pick: int) -> Entry | None:
        """One of the jobs, more often one that is not over."""
        living = [entry for entry in self.model.jobs if entry.status in UNFINISHED or entry.holder]
        found = living if pick < 9 and living else self.model.jobs
        return found[pick % len(found)] if found else None

    @rule(caller=WHO, count=st.sampled_from([1, 1, 1, 3]))
    def creates(self, caller: Caller, count: int) -> None:
        for _ in range(count):
            job = self.pair[0].jobs.create(caller, request(self.files[caller.tenant]))
            self.model.jobs.append(Entry(job.id, caller.tenant))

    @rule(server=SERVER)
    def takes_a_check(self, server: int) -> None:
        queue = self.queues[server]
        job = queue.claim_check()
        assert (None if job is None else job.id) == self.model.claim_check(queue.replica)

    @rule(server=SERVER, limit=st.integers(0, 3))
    def claims(self, server: int, limit: int) -> None:
        queue = self.queues[server]
        found = [job.id for job in queue.claim(limit)]
        assert found == (self.model.claim(queue.replica, limit) if limit else [])
        assert not set(found) & self.over.keys(), "a job that was over runs again"

    @rule(server=SERVER, caller=WHO)
    def has_many_checked(self, server: int, caller: Caller) -> None:
        """What chance alone would seldom make: several that wait."""
        self.creates(caller, 2)
        for _ in range(2):
            self.takes_a_check(server)
        for entry in list(self.model.jobs):
            if entry.holder == self.queues[server].replica and entry.status == "validating_files":
                self.check(server, entry)

    @rule(server=SERVER, pick=PICK)
    def finds_data_good(self, server: int, pick: int) -> None:
        if (entry := self.pick(pick)) is not None:
            self.check(server, entry)

    def check(self, server: int, entry: Entry) -> None:
        queue = self.queues[server]
        mine = entry.holder == queue.replica
        assert queue.checked(entry.id, request(self.files[entry.tenant])) == mine
        if mine:
            good = entry.status in ("validating_files", "paused")
            entry.checked = entry.checked or good
            entry.status = "queued" if entry.status == "validating_files" else entry.status
            entry.holder, entry.silent, entry.attempts = "", False, 0

    @rule(server=SERVER, every=st.booleans())
    def beats(self, server: int, every: bool) -> None:
        queue = self.queues[server]
        entries = self.model.jobs if every else [e for e in self.model.jobs if e.holder == queue.replica]
        orders = queue.heartbeat([entry.id for entry in entries])
        for entry in entries:
            mine = entry.holder == queue.replica
            expected = {"paused": "pause", "cancelled": "cancel"}.get(entry.status, "run") if mine else "lost"
            assert orders[entry.id] == expected
            if mine:
                entry.silent = False
        if entries:
            self.model.keep(queue.replica)

    @rule(server=SERVER)
    def keeps(self, server: int) -> None:
        self.queues[server].keep()
        self.model.keep(self.queues[server].replica)

    @rule(server=SERVER, joins=st.booleans())
    def has_trained_for_a_while(self, server: int, joins: bool) -> None:
        """What it trains gives way, or has another turn."""
        queue = self.queues[server]
        group = [e for e in self.model.jobs if e.holder == queue.replica and e.status == "running"]
        turn = queue.whose_turn([entry.id for entry in group], (lambda job: True) if joins else None)
        assert turn == self.model.whose_turn(queue.replica, group, joins)
        if turn == "again":
            self.model.turns += 1
            for entry in group:
                entry.turn = self.model.turns
        elif turn == "others":
            for entry in group:
                assert queue.stopped(entry.id, for_others=True)
                entry.attempts, entry.silent = max(0, entry.attempts - 1), False
                entry.free()

    @rule(server=SERVER, pick=PICK, what=st.sampled_from(["event", "checkpoint"]))
    def tells(self, server: int, pick: int, what: str) -> None:
        queue, entry = self.queues[server], self.pick(pick)
        if entry is None:
            return
        mine = entry.holder == queue.replica
        if what == "event":
            assert queue.add_event(entry.id, "info", "hello") == mine
        else:
            found = queue.add_checkpoint(entry.id, 5, f"{entry.id}@1", {"train_loss": 1.0})
            assert (found is not None) == mine
            entry.attempts = 0 if mine else entry.attempts

    @rule(server=SERVER, pick=PICK, how=st.sampled_from(["succeed", "fail", "stopped", "lost", "lost"]))
    def ends(self, server: int, pick: int, how: str) -> None:
        queue, entry = self.queues[server], self.pick(pick)
        if entry is None:
            return
        calls: dict[str, Any] = {
            "succeed": lambda: queue.succeed(entry.id, "shop@1", 12),
            "fail": lambda: queue.fail(entry.id, FAILURE),
            "stopped": lambda: queue.stopped(entry.id),
            "lost": lambda: queue.lost(entry.id, "It was killed."),
        }
        mine = entry.holder == queue.replica
        taken = {
            "succeed": entry.status in ("running", "paused"),
            "fail": entry.status != "cancelled",
        }.get(how, True)
        assert calls[how]() == (mine and taken)
        if not mine or not taken:
            return
        if how == "stopped":
            entry.attempts, entry.silent = max(0, entry.attempts - 1), False
            entry.free()
        elif how == "lost":
            entry.silent = False
            entry.lose()
        else:
            entry.end("succeeded" if how == "succeed" else "failed")

    @rule(pick=PICK, how=st.sampled_from(["cancel", "pause", "resume", "resume"]))
    def changes(self, pick: int, how: str) -> None:
        entry = self.pick(pick)
        if entry is None:
            return
        caller, jobs = Caller(entry.tenant), self.pair[0].jobs
        same = (how, entry.status) == ("cancel", "cancelled")
        if entry.status not in UNFINISHED and not same:
            with pytest.raises(Conflict, match=entry.status):
                getattr(jobs, how)(caller, entry.id)
            return
        if how == "cancel":
            entry.status, entry.keeper = "cancelled", ""
        elif how == "pause":
            entry.status = "paused"
        elif entry.status == "paused":
            waits = "running" if entry.holder else "queued"
            entry.status = waits if entry.checked else "validating_files"
        assert getattr(jobs, how)(caller, entry.id).status == entry.status

    @rule(server=SERVER)
    def starts_again(self, server: int) -> None:
        """Killed, whatever it had; the other one may notice first or not."""
        queue = self.queues[server]
        self.queues[server] = Jobs(self.pair[server].database, queue.replica, BASE)
        held = {entry.id for entry in self.model.jobs if entry.holder == queue.replica}
        assert set(self.queues[server].recover()) == held
        for entry in self.model.jobs:
            if entry.id in held:
                entry.lose()
        self.model.keep(queue.replica)

    @rule(server=SERVER)
    def falls_silent(self, server: int) -> None:
        """For longer than its claims last; then it goes on as if nothing had been."""
        replica = self.queues[server].replica
        with self.pair[0].database.write() as write:
            kept = and_(JOBS.c.replica == "", JOBS.c.keeper == replica)
            late = update(JOBS).where(or_(JOBS.c.replica == replica, kept))
            write.connection.execute(late.values(beat=time.time() - LOST_SECONDS - 1))
        for entry in self.model.jobs:
            entry.silent = entry.silent or replica in (entry.holder, entry.keeper if not entry.holder else "")

    @invariant()
    def is_as_the_model_says(self) -> None:
        found = {job.id: job for job in self.pair[1].jobs.list(LOCAL, limit=10_000)}
        assert list(found) == [entry.id for entry in reversed(self.model.jobs)], (
            "a job is lost, or out of order"
        )
        for entry in self.model.jobs:
            job = found[entry.id]
            told = (job.checked is not None, job.resume, job.attempts)
            assert (job.status, job.replica, job.keeper, *told) == entry.tell()
            if job.status not in UNFINISHED:
                self.over.setdefault(entry.id, job.status)
            assert self.over.get(entry.id, job.status) == job.status, "a job that was over is not any more"

    def teardown(self) -> None:
        """Nobody is forgotten: all that should run can be claimed, and all that should be looked at."""
        if not hasattr(self, "model"):
            return
        for server in (0, 1):
            self.starts_again(server)
        waiting = {entry.id for entry in self.model.jobs if entry.status == "queued"}
        unchecked = {entry.id for entry in self.model.jobs if entry.status == "validating_files"}
        claimed = [job.id for queue in self.queues for job in queue.claim(10_000)]
        assert sorted(claimed) == sorted(waiting)
        looked = [self.queues[1].claim_check() for _ in range(len(unchecked) + 1)]
        assert {job.id for job in looked if job is not None} == unchecked
        assert looked[-1] is None, "a job is claimed twice"


@contextmanager
def machine(url: str, folder: Path) -> Iterator[type[Machine]]:
    with sites(url, folder, "here", "there") as pair:
        files = {caller.tenant: pair[0].shared_file(caller) for caller in (ACME, OTHER)}
        yield cast(type[Machine], type("Bound", (Machine,), {"pair": pair, "files": files}))


def test_any_sequence(migrated_url: str, tmp_path: Path) -> None:
    with machine(migrated_url, tmp_path) as bound:
        run_state_machine_as_test(
            bound,
            settings=settings(
                max_examples=LONGER or 8,
                stateful_step_count=40,
                deadline=None,
                derandomize=not LONGER,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
