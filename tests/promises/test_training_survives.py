"""A job whose worker or server is killed goes on, and ends with the weights of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from adapters.batch.survey import survey
from adapters.blobs.local import WEIGHTS_FILE
from adapters.limits import AdapterLimits
from adapters.registry.records import LOCAL, Caller
from adapters.registry.registry import Registry
from server.engine.loading import base_digest
from server.jobs.files import Files
from server.jobs.publication import Publication
from server.jobs.records import JobRequest
from server.jobs.site import Bounds, Site
from server.jobs.store import Jobs
from server.jobs.supervisor import Supervisor
from server.metrics import Metrics
from server.spawn import start_server, stop_server
from tests.server.api.fakes import STATS
from training.base import MODEL_DIR
from training.data import read_jsonl
from training.run import TrainingData, train
from training.spec import LoraSpec, TrainSpec, spec_to_json
from training.tasks import make_examples

SPEC = TrainSpec(
    LoraSpec(rank=1, target_modules=("q_proj", "v_proj")),
    steps=40,
    batch_size=2,
    save_every=4,
    learning_rate=1e-2,
    seed=3,
)
SECONDS = 200


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    rows = make_examples("shout", 24)
    return "".join(json.dumps(row.as_row()) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def undisturbed(rows: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The weights of the same run, in this process and without a pause."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "rows.jsonl").write_bytes(rows)
    train(SPEC, MODEL_DIR, TrainingData(read_jsonl(folder / "rows.jsonl")), folder / "run")
    return weights(folder / "run")


def weights(folder: Path) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}


@dataclass
class Place:
    """What a server has of training, without its engine and without HTTP."""

    registry: Registry
    jobs: Jobs
    files: Files
    folder: Path

    def create(self, name: str, rows: bytes, spec: TrainSpec, caller: Caller = LOCAL, **fields: Any) -> str:
        """A job whose data needs no look."""
        path = self.folder / "upload"
        path.write_bytes(rows)
        file = self.files.add(caller, path, "rows.jsonl")
        request = JobRequest("base", name, file.id, spec, gate=False, **fields)
        job_id = self.jobs.create(Caller(caller.tenant), request).id
        claimed = self.jobs.claim_check()
        assert claimed is not None
        self.jobs.checked(claimed.id, request)
        return job_id

    def wait(self, job_id: str, ready: Callable[[], object]) -> None:
        wait(ready, lambda: str([event.message for event in self.jobs.events(LOCAL, job_id, limit=50)]))

    def result(self, name: str) -> dict[str, list[float]]:
        return weights(self.registry.folder(self.registry.resolve(name).digest))


def wait(ready: Callable[[], object], why: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)


@contextmanager
def supervised(folder: Path, slice_seconds: float = 600.0) -> Iterator[tuple[Place, Supervisor]]:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL_DIR))
    base = survey(model).describe(model, name="base", digest=base_digest(MODEL_DIR))
    data, stopping = folder / "data", threading.Event()
    with Registry(data, base, AdapterLimits()) as registry:
        jobs = Jobs(registry.database, registry.replica, base.digest)
        place = Place(registry, jobs, Files(registry.database, registry.replica, data), folder)
        supervisor = Supervisor(
            Site(
                jobs,
                place.files,
                Publication(registry, lambda work: work(), stopping),
                Metrics(lambda: STATS, "base", 1),
                data / "training" / "jobs",
                str(MODEL_DIR),
                Bounds(threads=1, nice=0, slice_seconds=slice_seconds),
                stopping,
            )
        )
        try:
            yield place, supervisor
        finally:
            supervisor.close()


def worker_of(parent: int) -> int:
    """The process that trains for the process `parent`."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if b"training.worker" in command and int(fields[1]) == parent:
            return int(entry.name)
    raise AssertionError("no process trains")


def test_kill_9_of_the_worker(rows: bytes, undisturbed: dict[str, list[float]], tmp_path: Path) -> None:
    with supervised(tmp_path) as (place, supervisor):
        job_id = place.create("bot", rows, SPEC)
        supervisor.start()
        place.wait(job_id, lambda: place.jobs.checkpoints(LOCAL, job_id))
        os.kill(worker_of(os.getpid()), signal.SIGKILL)
        place.wait(job_id, lambda: place.jobs.get(LOCAL, job_id).status in ("succeeded", "failed"))
        said = [event.message for event in place.jobs.events(LOCAL, job_id, limit=1000)]
        assert sum("killed by SIGKILL" in text for text in said) == 1
        assert any(text.startswith("Training goes on after step") for text in said)
        assert place.result("bot") == undisturbed


def test_a_job_that_gives_way_to_another_tenant(
    rows: bytes, undisturbed: dict[str, list[float]], tmp_path: Path
) -> None:
    """It can't join the long one. What it was to go on from is gone, so that its turn takes no time here."""
    with supervised(tmp_path, slice_seconds=0.0) as (place, supervisor):
        place.registry.tenants.put("other")
        long = place.create("long", rows, SPEC)
        gone = {"parent": "gone@1", "parent_digest": "0" * 64}
        alone = replace(SPEC, gradient_checkpointing=True)
        other = place.create("short", rows, alone, Caller("other"), **gone)
        supervisor.start()
        place.wait(long, lambda: place.jobs.get(LOCAL, long).status in ("succeeded", "failed"))
        first, last = place.jobs.get(LOCAL, other), place.jobs.get(LOCAL, long)
        assert (first.status, last.fine_tuned_model) == ("failed", "long@1")
        assert first.finished is not None
        assert last.finished is not None
        assert last.started is not None
        assert first.started is not None
        assert last.started < first.started < first.finished < last.finished
        said = [event.message for event in place.jobs.events(LOCAL, long, limit=1000)]
        assert said.count("The job waits for its next turn: others wait too.") == 1
        assert sum(text.startswith("Training goes on after step") for text in said) == 1
        steps = [checkpoint.step for checkpoint in place.jobs.checkpoints(LOCAL, long, limit=100)]
        assert steps == list(range(40, 0, -4)), "no version was made because others waited"
        assert place.result("long") == undisturbed


def test_a_job_that_diverges_beside_a_good_one(rows: bytes, tmp_path: Path) -> None:
    wild = replace(SPEC, lora=LoraSpec(rank=1), learning_rate=1e30, optimizer="sgd")
    with supervised(tmp_path) as (place, supervisor):
        bad, good = place.create("bad", rows, wild), place.create("good", rows, replace(SPEC, steps=8))
        supervisor.start()
        place.wait(good, lambda: place.jobs.get(LOCAL, good).status in ("succeeded", "failed"))
        place.wait(bad, lambda: place.jobs.get(LOCAL, bad).status in ("succeeded", "failed"))
        assert place.jobs.get(LOCAL, good).fine_tuned_model == "good@1"
        error = place.jobs.get(LOCAL, bad).error
        assert error is not None
        assert (error.code, error.fault) == ("diverged", "user")
        assert place.registry.versions("bad") == ()
        assert all(abs(value) < 100 for values in place.result("good").values() for value in values)


def test_kill_9_of_the_server(rows: bytes, undisturbed: dict[str, list[float]], tmp_path: Path) -> None:
    arguments = ["--port", "0", "--data-dir", str(tmp_path / "data")]
    arguments += ["--training-threads", "1", "--training-nice", "0"]
    environment = {"OMP_NUM_THREADS": "1"}
    process, url = start_server(arguments, tmp_path / "log", environment=environment)
    try:
        file = httpx.post(
            f"{url}/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", rows)}
        ).json()
        body = {
            "model": "base",
            "training_file": file["id"],
            "suffix": "bot",
            "seed": SPEC.seed,
            "training": {name: value for name, value in spec_to_json(SPEC).items() if name != "seed"},
            "gate": {"on": False},
        }
        answer = httpx.post(f"{url}/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 200, answer.text
        job = f"/v1/fine_tuning/jobs/{answer.json()['id']}"
        wait(
            lambda: httpx.get(f"{url}{job}/checkpoints").json()["data"],
            lambda: (tmp_path / "log").read_text(),
        )
        worker = worker_of(process.pid)
        process.kill()
        process.wait()
        wait(lambda: not Path(f"/proc/{worker}").exists())  # it does not outlive its server

        process, url = start_server(arguments, tmp_path / "log", environment=environment)
        wait(lambda: httpx.get(f"{url}{job}").json()["status"] in ("succeeded", "failed"))
        assert httpx.get(f"{url}{job}").json()["fine_tuned_model"] == "bot@1"
        digest = httpx.get(f"{url}/v1/adapters/bot@1").json()["digest"]
        assert weights(tmp_path / "data" / "adapters" / digest) == undisturbed
        steps = [
            each["step_number"] for each in httpx.get(f"{url}{job}/checkpoints?limit=100").json()["data"]
        ]
        assert steps == list(range(40, 0, -4))
    finally:
        stop_server(process)
