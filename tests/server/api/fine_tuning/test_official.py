"""The official client, unchanged, does all that it has methods for; each field of its models is there."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from pydantic import BaseModel

from adapters.registry.records import LOCAL
from server.jobs.service import Service
from tests.server.api.fine_tuning.conftest import ROWS, Official, begin, upload
from training.protocol import Failure

pytestmark = pytest.mark.usefixtures("nothing_waits")
RESULTS = {"step_metrics.csv": b"step,train_loss\n1,0.5\n", "card.md": b"# A", "curve.png": b"\x89PNG\r\n"}
OURS: dict[type[BaseModel], set[str]] = {
    FileObject: {"sha256"},
    FineTuningJob: {"suffix", "name", "training", "promote", "gate"},
    FineTuningJobEvent: set(),
    FineTuningJobCheckpoint: set(),
}


def check_complete(found: BaseModel) -> None:
    """All that the client knows of was sent, and nothing else but what the docs name."""
    kind = type(found)
    extra = set(found.model_extra or ())
    assert found.model_fields_set - extra == set(kind.model_fields), kind
    assert extra == OURS[kind]


def test_a_file(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=("my data.jsonl", ROWS),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    check_complete(file)
    assert (file.bytes, file.filename, file.purpose, file.status) == (
        len(ROWS),
        "my data.jsonl",
        "fine-tune",
        "processed",
    )
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    assert client.files.wait_for_processing(file.id) == file
    assert client.files.content(file.id).read() == ROWS
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.retrieve(file.id)


def test_files_come_page_by_page(official: Official) -> None:
    client = official("pages")
    ids = [upload(client) for _ in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
    assert client.files.list(purpose="batch").data == []
    assert not client.files.list().has_more


def test_a_job_from_its_file_to_its_model(client: openai.OpenAI, service: Service) -> None:
    train, validation = upload(client), upload(client)
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=train,
        validation_file=validation,
        suffix="shop",
        seed=7,
        metadata={"team": "a"},
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
            },
        },
        extra_body={"training": {"lora": {"rank": 4, "method": "dora"}}, "promote": "no"},
    )
    check_complete(job)
    assert (job.status, job.model, job.training_file, job.validation_file) == (
        "validating_files",
        "tiny",
        train,
        validation,
    )
    assert (job.seed, job.organization_id, job.metadata, job.error) == (7, "acme", {"team": "a"}, None)
    assert job.hyperparameters.n_epochs == 2
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    assert job.method.supervised.hyperparameters.learning_rate_multiplier == 0.5
    spec = begin(service, job.id).spec
    assert (spec.epochs, spec.learning_rate, spec.seed, spec.lora.rank, spec.lora.method) == (
        2,
        0.5 * 0.0078,  # what `train plan` says of the shipped base, which this server would have
        7,
        4,
        "dora",
    )
    service.jobs.heartbeat([job.id], {job.id: 2_000_000_000.0})
    running = client.fine_tuning.jobs.retrieve(job.id)
    assert (running.status, running.estimated_finish) == ("running", 2_000_000_000)
    for step in (10, 20):
        data = {"step": step, "total_steps": 20, "train_loss": 1.0 / step}
        service.jobs.add_event(job.id, "info", f"Step {step}/20", "metrics", data)
        service.jobs.add_checkpoint(job.id, step, f"{job.id}@{step // 10}", {"train_loss": 1.0 / step})
    service.jobs.add_event(job.id, "warn", "the loss is flat")
    taken = service.jobs.get(LOCAL, job.id)
    with service.files.results(taken, RESULTS) as results:
        assert service.jobs.succeed(job.id, "shop@1", 1234, results.ids, results.enter)
    _see_the_end(client, job.id)


def _see_the_end(client: openai.OpenAI, job_id: str) -> None:
    done = client.fine_tuning.jobs.retrieve(job_id)
    check_complete(done)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "shop@1", 1234)
    files = [client.files.retrieve(file_id) for file_id in done.result_files]
    for file in files:
        check_complete(file)
        assert file.purpose == "fine-tune-results"
    assert {file.filename: client.files.content(file.id).read() for file in files} == RESULTS
    assert files[0].filename == "step_metrics.csv"
    assert {file.id for file in client.files.list(purpose="fine-tune-results", limit=1)} == {
        *done.result_files
    }
    assert done.finished_at is not None
    assert done.estimated_finish is None
    events = list(client.fine_tuning.jobs.list_events(job_id, limit=2))  # as many pages as it takes
    for event in events:
        check_complete(event)
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == f"Created fine-tuning job: {job_id}"
    steps = [
        event.data["step"] for event in events if event.type == "metrics" and isinstance(event.data, dict)
    ]
    assert steps == [20, 10]
    assert [event.level for event in events].count("warn") == 1
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job_id, limit=1))
    for checkpoint in checkpoints:
        check_complete(checkpoint)
    assert [found.step_number for found in checkpoints] == [20, 10]
    assert checkpoints[0].fine_tuned_model_checkpoint == f"{job_id}@2"
    assert (checkpoints[0].metrics.train_loss, checkpoints[0].metrics.valid_loss) == (0.05, None)


def test_a_job_that_fails_says_whose_fault_it_is(client: openai.OpenAI, service: Service) -> None:
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client))
    assert service.jobs.claim_check() is not None
    message = "line 2: the row has no completion"
    service.jobs.fail(job.id, Failure("invalid_training_file", message, "training_file", "user", (message,)))
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.message, failed.error.param) == (
        "invalid_training_file",
        message,
        "training_file",
    )
    assert failed.error.model_extra == {"fault": "user", "details": [message]}
    last = client.fine_tuning.jobs.list_events(job.id, limit=1).data[0]
    assert (last.level, last.data) == ("error", {"code": "invalid_training_file", "fault": "user"})


def test_jobs_are_cancelled_paused_and_resumed(official: Official, service: Service) -> None:
    client = official()
    # OpenAI has routes for pausing, and no status: a client that checks strictly refuses `paused`.
    lenient = official(strict=False)
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client))
    begin(service, job.id)
    assert str(lenient.fine_tuning.jobs.pause(job.id).status) == "paused"
    assert service.jobs.heartbeat([job.id]) == {job.id: "pause"}
    service.jobs.stopped(job.id)
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert service.jobs.claim(1) == ()
    with pytest.raises(openai.ConflictError, match="it has cancelled already"):
        client.fine_tuning.jobs.resume(job.id)


def test_jobs_come_page_by_page_and_by_metadata(official: Official) -> None:
    client = official("listing")
    file = upload(client)
    labels: list[dict[str, str] | None] = [{"team": "a"}, {"team": "b"}, {"team": "a", "x y": "ä&="}, None]
    ids = [
        client.fine_tuning.jobs.create(model="tiny", training_file=file, metadata=label).id
        for label in labels
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=3)] == ids[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=1, metadata={"team": "a"})] == [
        ids[2],
        ids[0],
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"x y": "ä&="})] == [ids[2]]
    query: dict[str, Any] = {"metadata": "null"}
    assert [job.id for job in client.fine_tuning.jobs.list(extra_query=query)] == [ids[3]]


def test_preferences(client: openai.OpenAI, service: Service) -> None:
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.25, "n_epochs": 1}}},
    )
    assert job.method is not None
    assert job.method.type == "dpo"
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.25
    spec = begin(service, job.id).spec
    assert (spec.objective, spec.beta, spec.epochs) == ("dpo", 0.25, 1)


def test_the_deprecated_place_of_hyperparameters(client: openai.OpenAI, service: Service) -> None:
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=upload(client), hyperparameters={"n_epochs": 3, "batch_size": 8}
    )
    spec = begin(service, job.id).spec
    assert (spec.epochs, spec.batch_size) == (3, 8)
