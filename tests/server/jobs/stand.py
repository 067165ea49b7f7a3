"""A data directory in which a supervisor works with a process that only plays."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.limits import AdapterLimits
from adapters.registry.records import LOCAL, AdapterVersion, Caller
from adapters.registry.registry import Registry
from server.jobs import group, slice, supervisor
from server.jobs.files import Files
from server.jobs.publication import Publication
from server.jobs.records import Job, JobRequest
from server.jobs.site import Bounds, Site
from server.jobs.store import Jobs
from server.jobs.supervisor import Supervisor
from server.metrics import Metrics
from tests.adapters.conftest import plain_adapter, spec_of, tiny_llama
from tests.server.api.fakes import STATS
from training.events import Evaluated, Finished, Progress, Sample, Started, event_to_json
from training.spec import TrainSpec

FAKE = Path(__file__).with_name("fake_worker.py")
STARTED = event_to_json(Started(0.0, 4, 10, 1000, 8, 2))
USER = Caller("default", "key-0123")


def progress(step: int) -> list[Any]:
    return ["say", event_to_json(Progress(step, 1.0 / step, 0.01, 0.5, 100.0, 1.0, 50 * step, 0.5))]


GOOD = [
    ["say", STARTED],
    progress(1),
    ["say", event_to_json(Evaluated(2, 0.25, 0.75, "exact_match", 0.5, (Sample("a", "b", "c"),)))],
    ["save", 2],
    progress(4),
    ["save", 4],
    ["say", event_to_json(Finished(4, "done", 1.0, 0.2, 200))],
    ["done", 4],
]


class Place:
    """One data directory with all that a supervisor needs, and one of these on demand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.adapter = plain_adapter(folder / "adapter").folder
        monkeypatch.setenv("ADAPTER", str(self.adapter))
        monkeypatch.setattr(supervisor, "IDLE_SECONDS", 0.05)
        monkeypatch.setattr(group, "TICK_SECONDS", 0.02)
        monkeypatch.setattr(group, "BEAT_SECONDS", 0.05)
        monkeypatch.setattr(slice, "LOOK_SECONDS", 0.05)
        self.base = spec_of(tiny_llama())
        self.registry = Registry(folder / "data", self.base, AdapterLimits())
        database, replica = self.registry.database, self.registry.replica
        self.jobs = Jobs(database, replica, self.base.digest)
        self.files = Files(database, replica, folder / "data")
        self.metrics = Metrics(lambda: STATS, "tiny", 1)
        self.publish: Callable[[Any], tuple[AdapterVersion, bool]] = lambda work: work()
        self.stopping = threading.Event()

    @contextmanager
    def supervised(self, together: int = 8, slice_seconds: float = 600.0) -> Iterator[Supervisor]:
        self.stopping = threading.Event()
        site = Site(
            self.jobs,
            self.files,
            Publication(self.registry, lambda work: self.publish(work), self.stopping),
            self.metrics,
            self.folder / "data" / "training" / "jobs",
            "base",
            Bounds(1, 1 << 30, 3, together, slice_seconds=slice_seconds),
            self.stopping,
            (sys.executable, str(FAKE)),
        )
        found = Supervisor(site)
        found.start()
        try:
            yield found
        finally:
            found.close()

    def create(self, actions: Any, name: str = "bot", caller: Caller = USER, **request: Any) -> str:
        path = self.folder / "upload"
        path.write_text(json.dumps(actions))
        file = self.files.add(caller, path, "rows.jsonl")
        spec = request.pop("spec", TrainSpec())
        return self.jobs.create(caller, JobRequest("tiny", name, file.id, spec, **request)).id

    def cancelled_as_it_is_published(self, actions: Any) -> None:
        """Run a job whose owner cancels it when its result is a version, and the job does not know yet."""
        job_id = ""

        def publish(work: Any) -> tuple[AdapterVersion, bool]:
            version, is_new = work()
            if version.name == "bot":
                self.jobs.cancel(USER, job_id)
            return version, is_new

        self.publish = publish
        job_id = self.create(actions)
        with self.supervised():
            self.wait(job_id, "cancelled")

    def job(self, job_id: str) -> Job:
        return self.jobs.get(LOCAL, job_id)

    def wait(self, job_id: str, *statuses: str) -> Job:
        deadline = time.monotonic() + 20
        while self.job(job_id).status not in statuses or self.job(job_id).replica:
            assert time.monotonic() < deadline, (self.job(job_id), self.said(job_id))
            time.sleep(0.02)
        return self.job(job_id)

    def said(self, job_id: str) -> list[str]:
        return [event.message for event in self.jobs.events(LOCAL, job_id, limit=1000, oldest=True)]

    def count(self, outcome: str) -> float:
        return float(self.metrics.training_jobs.labels(outcome)._value.get())
