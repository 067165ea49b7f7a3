"""Where and within what bounds a server trains, and what it knows of a job that it trains."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.jobs.files import Files
from server.jobs.process import COMMAND
from server.jobs.publication import Publication
from server.jobs.queue import NewEvent
from server.jobs.records import Job, Order
from server.jobs.store import Jobs
from server.jobs.telling import Telling
from server.machine import cores, free_memory
from server.metrics import Metrics
from training.bounds import LOWEST
from training.folder import RunFolder
from training.protocol import JobWork, Work


@dataclass(frozen=True, slots=True)
class Bounds:
    """What training may take. `threads` 0 and `memory_bytes` None: chosen as a process starts.

    Attributes:
        together: most jobs of one process.
        gpu: whether it may see a GPU.
        slice_seconds: that a process trains before it gives way to others that wait.
    """

    threads: int = 0
    memory_bytes: int | None = None
    nice: int = LOWEST
    together: int = 8
    gpu: bool = True
    slice_seconds: float = 600.0

    def work(self, base: str, jobs: Sequence[JobWork], *, check: bool) -> Work:
        """Of a process that starts now."""
        threads = self.threads or max(1, cores() // 2)
        memory = self.memory_bytes or free_memory() // 2
        return Work(base, threads, tuple(jobs), memory, self.nice, check)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a server trains.

    Attributes:
        folder: of all jobs; each has one of its own in it.
        base: its folder, or its hub id.
        stopping: set when the server ends.
    """

    jobs: Jobs
    files: Files
    publication: Publication
    metrics: Metrics
    folder: Path
    base: str
    bounds: Bounds
    stopping: threading.Event
    command: Sequence[str] = COMMAND

    def run_of(self, job_id: str) -> RunFolder:
        return RunFolder(self.folder / job_id)


@dataclass(slots=True)
class Entry:
    """One job that a process has.

    Attributes:
        data: name and SHA-256 of its files.
        attempts: claims since the last checkpoint.
        said: what it told, and was not written yet.
        gate: what the evaluation gate said.
        gives_way: it was told to stop for others that wait.
        trained: it took all its steps.
        ended: the process says no more of it.
        tasks: what is left to do for it, in turn; the job is over when it has `ended` and these are done.
    """

    job: Job
    data: tuple[tuple[str, str], ...]
    attempts: int
    telling: Telling = field(default_factory=Telling)
    said: list[NewEvent] = field(default_factory=list)
    gate: dict[str, Any] | None = None
    order: Order = "run"
    asked_to_stop: bool = False
    gives_way: bool = False
    trained: bool = False
    ended: bool = False
    tasks: list[Future[None]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.ended and all(task.done() for task in self.tasks)

    @property
    def trains(self) -> bool:
        """Whether it is to take more steps."""
        return not (self.asked_to_stop or self.trained or self.ended)

    @property
    def is_unwanted(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.order in ("cancel", "lost")
