"""The threads that have jobs checked and trained: they take what waits, and group what can train together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from adapters.errors import RegistryUnavailable
from server.jobs.group import Group
from server.jobs.outcomes import Outcomes
from server.jobs.records import Job
from server.jobs.site import Site
from training.joint.admission import can_join, shares_base

log = logging.getLogger(__name__)
IDLE_SECONDS = 2.0
"""Between two looks at the queue, where other servers may have put something; our own wakes us at once."""


LINGER_SECONDS = 10.0
"""How long training waits for a check that goes on: what comes out of it may train together."""
CLOSE_SECONDS = 20.0
"""For jobs to be saved, and for what is just being published."""
MOST_CHECKS = 16
"""Jobs whose data one process looks at."""


class Supervisor:
    """Of one server. One process trains at a time, with several jobs where they can train together.

    Beside it another one looks at the data of new jobs.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._outcomes = Outcomes(site)
        self._alone: set[str] = set()
        """Jobs of groups whose process died: each goes on alone, so that one can't harm the others again."""
        self._checked_alone: set[str] = set()
        """The same of those whose data was looked at."""
        self._dropped: list[tuple[Job, str]] = []
        """Jobs that were claimed when the supervisor failed, and how; empty: it was no fault of theirs."""
        self._no_check = threading.Event()
        self._no_check.set()
        self._wakes = (threading.Event(), threading.Event())
        self._threads = [
            threading.Thread(target=self._work, args=(turn, wake), name=name, daemon=True)
            for turn, wake, name in zip(
                (self._check, self._train), self._wakes, ("checks", "training"), strict=True
            )
        ]

    def start(self) -> None:
        """What this server trained when it ended goes on from its newest checkpoint.

        Raises:
            RegistryUnavailable: the database is away.
        """
        self._site.folder.mkdir(parents=True, exist_ok=True)
        self._site.jobs.recover()
        self._outcomes.sweep()
        self._site.jobs.wake = self._wake
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Have all jobs save and wait for the next start; returns at once."""
        self._site.stopping.set()
        self._wake()

    def close(self) -> None:
        """`stop`, and wait until it is done; what takes too long is left as `kill -9` would leave it."""
        self.stop()
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _wake(self) -> None:
        for wake in self._wakes:
            wake.set()

    def _work(self, turn: Callable[[], bool], wake: threading.Event) -> None:
        while not self._site.stopping.is_set():
            try:
                self._give_back()
                self._site.jobs.keep()
                if turn():
                    continue
                wake.wait(IDLE_SECONDS)
                wake.clear()
                continue
            except RegistryUnavailable as error:
                log.warning("no jobs can be taken now: %s", error)
            except Exception:  # whatever it was, other jobs must not wait for ever
                log.exception("the supervisor of training failed; it goes on")
            self._site.stopping.wait(IDLE_SECONDS)

    def _give_back(self) -> None:
        while self._dropped:
            job, reason = dropped = self._dropped.pop()
            try:
                if reason:
                    self._site.jobs.lost(job.id, reason)
                else:
                    self._site.jobs.stopped(job.id)
            except RegistryUnavailable:
                self._dropped.append(dropped)
                raise

    def _check(self) -> bool:
        """Look at the data of what is new; false if there is nothing."""
        jobs: list[Job] = []
        while len(jobs) < MOST_CHECKS:
            job = self._site.jobs.claim_check(self._checked_alone if jobs else ())
            if job is None:
                break
            jobs.append(job)
            self._no_check.clear()
            if job.id in self._checked_alone:
                break
        try:
            if jobs:
                _note(self._checked_alone, jobs, self._run(jobs, check=True))
        finally:
            self._no_check.set()
        return bool(jobs)

    def _train(self) -> bool:
        """Train what is next; false if nothing waits."""
        self._no_check.wait(LINGER_SECONDS)
        jobs = self._claim()
        if not jobs:
            return False
        _note(self._alone, jobs, self._run(jobs))
        self._outcomes.sweep()
        return True

    def _run(self, jobs: Sequence[Job], *, check: bool = False) -> Group:
        """What came of it."""
        joins = self._joins(jobs[0])
        group = Group(self._site, self._outcomes, jobs, joins, check=check)
        try:
            group.run()
        except RegistryUnavailable:
            self._dropped += [(job, "") for job in jobs]
            raise
        except Exception as error:
            self._dropped += [(job, f"The server failed with it: {type(error).__name__}.") for job in jobs]
            raise
        return group

    def _claim(self) -> tuple[Job, ...]:
        jobs = self._site.jobs.claim(1)
        if not jobs or not self._can_join(jobs[0]):
            return jobs
        return jobs + self._site.jobs.claim(self._site.bounds.together - 1, self._joins(jobs[0]))

    def _joins(self, first: Job) -> Callable[[Job], bool]:
        """Whether others can train together with this one."""
        alone, shared = not self._can_join(first), shares_base(first.spec)
        return lambda job: not alone and self._can_join(job) and shares_base(job.spec) == shared

    def _can_join(self, job: Job) -> bool:
        return job.id not in self._alone and can_join(job.spec) is None


def _note(alone: set[str], jobs: Sequence[Job], group: Group) -> None:
    """Whether these are to go on alone after what became of their process."""
    if not group.died:
        alone -= {job.id for job in jobs} - group.given_way
    elif len(jobs) > 1:
        alone |= {job.id for job in jobs}
