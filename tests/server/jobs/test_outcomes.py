"""What a job leaves, and for how long; what becomes of jobs is in test_supervisor.py."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from adapters.errors import RegistryUnavailable
from adapters.registry.records import LOCAL, AdapterVersion
from server.jobs import outcomes
from server.jobs.outcomes import KEEP_METRICS_SECONDS, KEEP_SECONDS, gate_failure
from server.jobs.schema import JOBS
from tests.server.jobs.stand import GOOD, USER, Place
from training.events import Progress, event_to_json

STEP = json.dumps(event_to_json(Progress(1, 0.5, 0.01, 1.0, 2.0, 3.0, 4))) + "\n"
STEPS = [["write", "run/events.jsonl", STEP], ["write", "run/curve.png", "PNG"]]
WHOLE = [*STEPS, *GOOD]
DIVERGED = {"code": "diverged", "message": "the loss is nan at step 2", "fault": "user"}


def results(place: Place, job_id: str) -> dict[str, str]:
    """Names and contents, in their order."""
    files = [place.files.get(USER, file_id) for file_id in place.job(job_id).result_files]
    return {file.filename: place.files.path(file.id).read_text() for file in files}


def stored(place: Place) -> set[str]:
    """Names of all result files that there are, whoever knows of them, and of contents without a row."""
    place.files.sweep()
    return {file.filename for file in place.files.list(LOCAL, purpose="fine-tune-results")}


def contents(place: Place) -> int:
    return len(os.listdir(place.folder / "data/training/files"))


def full(*_: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def finish(place: Place, job_id: str, seconds: float) -> None:
    """Have a job be over for so long."""
    with place.registry.database.write() as write:
        ended = update(JOBS).where(JOBS.c.id == job_id)
        write.connection.execute(ended.values(finished=write.now - seconds))


def test_a_job_that_succeeds_leaves_figures_card_curve_and_lineage(place: Place) -> None:
    with place.supervised():
        job_id = place.create(WHOLE)
        place.wait(job_id, "succeeded")
    found = results(place, job_id)
    assert list(found) == [
        "step_metrics.csv",
        *(f"{job_id}-{name}" for name in ("card.md", "curve.png", "lineage.json")),
    ]
    assert found["step_metrics.csv"].splitlines()[1].startswith("1,0.5,")
    assert found[f"{job_id}-card.md"] == (place.adapter / "README.md").read_text()
    assert found[f"{job_id}-curve.png"] == "PNG"
    lineage = json.loads(found[f"{job_id}-lineage.json"])
    assert lineage["job"] == job_id
    assert lineage["data"] == [
        {
            "name": "rows.jsonl",
            "sha256": place.files.get(LOCAL, place.job(job_id).request.training_file).sha256,
        }
    ]


def test_a_job_that_fails_after_a_step_leaves_what_shows_why(place: Place) -> None:
    gate = {"event": "gate", "reason": "worse", "held_out": True, "scores": {}, "passed": False}
    with place.supervised():
        diverged = place.create([*STEPS, ["fail", DIVERGED]])
        worse = place.create([*WHOLE[:-1], ["say", gate], WHOLE[-1]], "worse")
        stepless = place.create([["fail", DIVERGED]], "stepless")
        for job_id in (diverged, worse, stepless):
            place.wait(job_id, "failed")
    for job_id in (diverged, worse):
        assert list(results(place, job_id)) == ["step_metrics.csv", f"{job_id}-curve.png"]
    assert results(place, stepless) == {}


def test_a_job_that_is_cancelled_as_it_ends_leaves_none(place: Place) -> None:
    place.cancelled_as_it_is_published(WHOLE)
    assert (stored(place), contents(place)) == (set(), 1)


def test_a_second_try_leaves_one_of_each(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs.group.RETRY_SECONDS", 0.01)
    succeed, away = place.jobs.succeed, [True, True]

    def flaky(job_id: str, *rest: Any) -> bool:
        with place.registry.database.write() as write:
            if away:
                away.pop()
                rest[-1](write)  # the rows of its files, in a transaction that is lost
                raise RegistryUnavailable("the database went away")
        return succeed(job_id, *rest)

    monkeypatch.setattr(place.jobs, "succeed", flaky)
    with place.supervised():
        job_id = place.create(WHOLE)
        place.wait(job_id, "succeeded")
    assert away == []
    assert len(place.files.list(LOCAL, purpose="fine-tune-results")) == len(results(place, job_id)) == 4
    assert contents(place) == 1 + 4


def test_a_job_that_is_cancelled_between_two_tries_publishes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.group.RETRY_SECONDS", 0.01)
    succeed, tries = place.jobs.succeed, 0

    def flaky(job_id: str, *rest: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RegistryUnavailable("the database went away")
        place.jobs.cancel(USER, job_id)
        return succeed(job_id, *rest)

    monkeypatch.setattr(place.jobs, "succeed", flaky)
    with place.supervised():
        place.wait(place.create(WHOLE), "cancelled")
    assert tries == 2
    assert place.registry.versions("bot") == ()
    assert (stored(place), contents(place)) == (set(), 1)


def test_a_full_disk_costs_a_job_its_files_and_not_its_adapter(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.supervised():
        job_id = place.create(WHOLE)
        monkeypatch.setattr("server.jobs.files.sync", full)
        job = place.wait(job_id, "succeeded")
    assert (job.fine_tuned_model, job.result_files) == ("bot@1", ())
    assert "The job's result files could not be stored: No space left on device" in place.said(job_id)
    assert (stored(place), contents(place)) == (set(), 1)


def test_a_full_disk_costs_a_checkpoint_and_no_training(place: Place) -> None:
    tries = 0

    def publish(work: Any) -> tuple[AdapterVersion, bool]:
        nonlocal tries
        tries += 1
        version, is_new = full() if tries == 1 else work()
        return version, is_new

    place.publish = publish
    with place.supervised():
        job_id = place.create(GOOD)
        assert place.wait(job_id, "succeeded").fine_tuned_model == "bot@1"
    said = "The checkpoint at step 2 can't be asked: the server's disk has no space left for this adapter"
    (event,) = [event for event in place.jobs.events(LOCAL, job_id, limit=100) if event.message == said]
    assert event.level == "warn"
    assert [checkpoint.step for checkpoint in place.jobs.checkpoints(LOCAL, job_id)] == [4]
    assert tries == 3


def test_a_result_waits_for_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs.publication.RETRY_SECONDS", 0.01)
    write_text, tries = Path.write_text, 0

    def flaky(path: Path, *rest: Any, **more: Any) -> int:
        nonlocal tries
        if path.name == "lineage.json.part":
            tries += 1
            if tries < 4:
                full()
        return write_text(path, *rest, **more)

    monkeypatch.setattr(Path, "write_text", flaky)
    with place.supervised():
        job_id = place.create([["done", 1]])
        assert place.wait(job_id, "succeeded").fine_tuned_model == "bot@1"
    assert tries == 4


def test_a_result_without_room_stays_for_the_operator(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs.publication.RETRY_SECONDS", 0.001)
    monkeypatch.setattr("server.jobs.publication._TRIES", 3)
    place.publish = full
    with place.supervised():
        job_id = place.create(WHOLE)
        error = place.wait(job_id, "failed").error
    assert error is not None
    assert (error.code, error.fault) == ("server_error", "server")
    assert "no space left" in error.message
    assert f"training/jobs/{job_id}" in error.message
    folder = place.folder / "data/training/jobs" / job_id
    with place.supervised():  # whatever sweeps
        pass
    assert not (folder / "run/checkpoints").exists()
    version, _ = place.registry.publish_folder("rescued", folder, "by hand")
    assert version.lineage.job == job_id


def test_another_error_of_the_disk_is_no_lack_of_room(place: Place) -> None:
    def broken(_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    place.publish = broken
    with place.supervised():
        error = place.wait(place.create([["done", 1]]), "failed").error
    assert error is not None
    assert (error.code, error.message) == ("server_error", "OSError: [Errno 5] Input/output error")


def test_a_folder_goes_with_time_and_results_stay(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with place.supervised():
        old, young = place.create(WHOLE), place.create(WHOLE, "other")
        for job_id in (old, young):
            place.wait(job_id, "succeeded")
    finish(place, old, KEEP_SECONDS + 60)
    finish(place, young, KEEP_SECONDS - 60)
    folder = place.folder / "data/training/jobs"
    with place.supervised():
        assert not (folder / old).exists()
        assert (folder / young / "run/events.jsonl").is_file()
    assert len(results(place, old)) == 4
    assert place.registry.resolve("bot", USER).version == 1


def test_old_figures_go_a_bounded_number_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_BATCHES", 2)
    job_ids = [place.create([["fail", DIVERGED]], name) for name in ("old", "young")]
    with place.supervised():
        for job_id in job_ids:
            place.wait(job_id, "failed")
    asked: list[float] = []

    def forget(before: float) -> int:
        asked.append(before)
        return 1000

    finish(place, job_ids[0], KEEP_METRICS_SECONDS + 60)
    monkeypatch.setattr(place.jobs, "forget_metrics", forget)
    with place.supervised():
        pass
    assert len(asked) == 2
    finished = [place.job(job_id).finished or 0.0 for job_id in job_ids]
    assert finished[0] < asked[0] < finished[1]


def test_a_gate_that_is_not_passed_is_told_with_its_figures() -> None:
    failure = gate_failure({"reason": "exact_match 0.1 is below the base's 0.5"})
    assert failure.code == "gate_not_passed"
    assert "exact_match 0.1 is below the base's 0.5" in failure.message
