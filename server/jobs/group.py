"""Jobs that one process trains together: from claims to their ends, whatever becomes of the process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from adapters.errors import AdapterNotFound, InvalidAdapter, RegistryUnavailable
from adapters.registry.records import LOCAL
from server.jobs.errors import JobError
from server.jobs.outcomes import Outcomes
from server.jobs.process import TrainingProcess
from server.jobs.publication import RETRY_SECONDS
from server.jobs.queue import NewEvent
from server.jobs.records import EventType, Job
from server.jobs.site import Entry, Site
from server.jobs.slice import Slice, note_checkpoint, turn_end
from training.events import Event, Finished, Progress, Saved, event_from_json
from training.protocol import Failure, GateWork, JobWork

log = logging.getLogger(__name__)
TICK_SECONDS = 0.25
BEAT_SECONDS = 1.0
"""Between two heartbeats, which also bring orders and take what there is to tell."""
STOP_SECONDS = 10.0
"""What a process gets to save its jobs when the server ends."""
LOG, CHECK_LOG = "worker.log", "check.log"
_ALL = 1_000_000


class Group:
    """Trains claimed jobs. Made for one use, by one thread.

    Attributes:
        died: the process ended before its jobs did.
    """

    def __init__(
        self,
        site: Site,
        outcomes: Outcomes,
        jobs: Sequence[Job],
        joins: Callable[[Job], bool],
        *,
        check: bool = False,
    ) -> None:
        """
        Args:
            joins: whether another job could train together with these.
            check: only see whether their data is good.
        """
        self.died = False
        self._check = check
        self._site, self._outcomes = site, outcomes
        self._entries = {job.id: Entry(job, (), job.attempts) for job in jobs}
        self._slice = Slice(site, joins)
        self._beat = 0.0

    @property
    def given_way(self) -> set[str]:
        """Ids of the jobs that were told to stop for others."""
        return {job_id for job_id, entry in self._entries.items() if entry.gives_way}

    def run(self) -> None:
        """Until all of them have ended, wait for another turn, or were given up."""
        with ExitStack() as held:
            self._tasks = held.enter_context(ThreadPoolExecutor(1, "publication"))
            jobs = [job for entry in self._entries.values() if (job := self._prepare(entry, held))]
            if not jobs:
                return
            running = self._site.metrics.training_running.labels("check" if self._check else "train")
            running.set(len(jobs))
            held.callback(running.set, 0)
            work = self._site.bounds.work(self._site.base, jobs, check=self._check)
            name = CHECK_LOG if self._check else LOG
            self._process = TrainingProcess(
                work, self._site.folder / name, self._site.command, gpu=self._site.bounds.gpu
            )
            held.callback(self._process.close)
            log.info("process %d has %s", self._process.pid, ", ".join(job.id for job in jobs))
            self._listen()

    def _prepare(self, entry: Entry, held: ExitStack) -> JobWork | None:
        """What the process must know of a job; None: it has failed already."""
        site, job, request = self._site, entry.job, entry.job.request
        try:
            files = [
                site.files.get(LOCAL, file_id)
                for file_id in (request.training_file, request.validation_file)
                if file_id is not None
            ]
            paths = [site.files.path(file.id) for file in files]
            site.publication.check_parent(job)
            parent = held.enter_context(site.publication.held(request.parent_digest))
            gate = None
            if request.gate and not self._check:
                current = site.publication.current(job)
                folder = held.enter_context(site.publication.held(current.digest if current else None))
                gate = GateWork(folder, request.gate_minimum)
        except (AdapterNotFound, InvalidAdapter, JobError) as error:
            entry.ended = True
            failure = Failure("not_found", f"what the job needs is not there: {error}", fault="user")
            self._later(entry, partial(self._outcomes.failed, entry, failure))
            return None
        entry.data = tuple((file.filename, file.sha256) for file in files)
        self._publish_missing(entry)
        return JobWork(
            id=job.id,
            folder=site.run_of(job.id).path,
            train=paths[0],
            spec=request.spec,
            validation=paths[1] if len(paths) > 1 else None,
            parent=parent,
            resume=job.resume,
            gate=gate,
            data=entry.data,
        )

    def _listen(self) -> None:
        """Hear the process until it ends, and keep the claims until all is done."""
        runs, deadline = True, float("inf")
        while not all(entry.is_over for entry in self._entries.values()):
            if runs:
                runs = self._hear_all()
            else:
                time.sleep(TICK_SECONDS)
            if time.monotonic() - self._beat >= BEAT_SECONDS:
                self._heartbeat()
            if self._site.stopping.is_set() and deadline == float("inf"):
                deadline = time.monotonic() + STOP_SECONDS
                for entry in self._entries.values():
                    self._stop(entry)
            if runs and self._slice.is_over(self._entries.values()):
                self._give_way()
            if runs and (time.monotonic() > deadline or self._nobody_waits()):
                self._process.kill()

    def _nobody_waits(self) -> bool:
        """Whether all that still trains is of no use any more."""
        training = [entry for entry in self._entries.values() if not entry.ended]
        return bool(training) and all(entry.is_unwanted for entry in training)

    def _heartbeat(self) -> None:
        self._beat = time.monotonic()
        entries = {entry.job.id: entry for entry in self._entries.values() if not entry.is_over}
        left = {job_id: entry.telling.seconds_left for job_id, entry in entries.items()}
        finish = {job_id: time.time() + seconds for job_id, seconds in left.items() if seconds is not None}
        try:
            for entry in entries.values():
                if not entry.ended:  # else a task does it
                    self._flush(entry)
            orders = self._site.jobs.heartbeat(entries, finish)
        except RegistryUnavailable as error:
            log.warning("what jobs tell is kept for later: %s", error)
            return
        for job_id, order in orders.items():
            entries[job_id].order = order
            if order != "run":
                self._stop(entries[job_id])

    def _give_way(self) -> None:
        """Have all that still train save, and wait for their next turn."""
        for entry in self._entries.values():
            if entry.trains:
                entry.gives_way = True
                self._stop(entry)

    def _stop(self, entry: Entry) -> None:
        if not entry.asked_to_stop and not entry.ended:
            entry.asked_to_stop = True
            self._process.stop(entry.job.id)

    def _hear_all(self) -> bool:
        """What the process says now; false if it has ended."""
        try:
            for message in self._process.messages(TICK_SECONDS):
                self._hear(self._entries[message.pop("job")], message)
        except EOFError:
            self._lose()
            return False
        return True

    def _hear(self, entry: Entry, message: dict[str, Any]) -> None:
        kind = message["event"]
        if kind == "checked":
            self._ended(entry, partial(self._outcomes.checked, entry, message["report"]))
        elif kind == "gate":
            entry.gate = message
        elif kind == "failed":
            self._ended(entry, partial(self._outcomes.failed, entry, Failure.from_json(message["error"])))
        elif kind == "stopped":
            self._ended(entry, partial(self._outcomes.released, entry))
        elif kind == "complete":
            folder, tokens = Path(message["folder"]), message["metrics"]["trained_tokens"]
            self._ended(entry, partial(self._outcomes.complete, entry, folder, tokens))
        else:
            self._told(entry, event_from_json(message))

    def _told(self, entry: Entry, event: Event) -> None:
        if isinstance(event, Progress):
            self._site.metrics.training_steps.inc()
            self._slice.step()
        if isinstance(event, Finished):
            entry.trained = event.reason != "stopped"
        if isinstance(event, Saved):
            ends_turn = entry.gives_way and not event.planned
            note_checkpoint(self._site.run_of(entry.job.id), event.step, ends_turn=ends_turn)
            if not ends_turn:  # others are not to cost the job its quota of versions
                metrics = entry.telling.metrics(event.step)
                self._later(entry, partial(self._outcomes.checkpoint, entry, event.step, metrics))
        elif (told := entry.telling.hear(event)) is not None:
            kind: EventType = "metrics" if told.is_metrics else "message"
            entry.said.append(NewEvent(told.message, told.level, kind, told.data))

    def _flush(self, entry: Entry) -> None:
        """Write down what a job told; where that fails, it is kept."""
        count = len(entry.said)
        if count:
            self._site.jobs.add_events(entry.job.id, entry.said[:count])
            del entry.said[:count]

    def _ended(self, entry: Entry, outcome: Callable[[], None]) -> None:
        """The process has said its last of a job. Only this thread looks whether the job is over."""
        entry.ended = True
        self._later(entry, partial(self._flush, entry))
        self._later(entry, outcome)

    def _later(self, entry: Entry, task: Callable[[], None]) -> None:
        """One after another, beside what the process does meanwhile."""
        entry.tasks.append(self._tasks.submit(self._guarded, entry, task))

    def _guarded(self, entry: Entry, task: Callable[[], None]) -> None:
        while True:
            try:
                task()
            except RegistryUnavailable as error:
                log.warning("job %s waits: %s", entry.job.id, error)
                if not self._site.stopping.wait(RETRY_SECONDS):
                    continue
            except Exception as error:
                log.exception("job %s", entry.job.id)
                if self._site.stopping.is_set():  # no fault of the job: the next start finds its claim
                    return
                self._outcomes.failed(entry, Failure("server_error", f"{type(error).__name__}: {error}"))
            return

    def _publish_missing(self, entry: Entry) -> None:
        """Checkpoints that were whole when a server ended, and not published yet."""
        job_id = entry.job.id
        run = self._site.run_of(job_id)
        known = {checkpoint.step for checkpoint in self._site.jobs.checkpoints(LOCAL, job_id, limit=_ALL)}
        for step in run.steps():
            if step not in known and step != turn_end(run):
                self._later(entry, partial(self._outcomes.checkpoint, entry, step, {"step": step}))

    def _lose(self) -> None:
        """The process has ended; jobs that it was not done with go on in another, or are given up."""
        self._process.close()
        words, ending = self._process.last_words(), self._process.ending()
        left = [entry for entry in self._entries.values() if not entry.ended]
        wanted = [entry.job.id for entry in left if entry.order == "run"]
        self.died = bool(wanted) and not self._site.stopping.is_set()
        if self.died:
            self._site.metrics.training_deaths.inc()
            log.warning("the process that trained %s ended: %s", ", ".join(wanted), words)
        for entry in left:
            if self.died and entry.order == "run":
                # Of several jobs nobody knows whose words they are, and one must not read another's.
                told = words if len(self._entries) == 1 else ending
                self._ended(entry, partial(self._outcomes.lost, entry, told))
            else:
                self._ended(entry, partial(self._outcomes.released, entry))
