"""The supervisor with a process that only plays: what becomes of jobs, whatever the process does."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import RegistryUnavailable
from adapters.registry.records import LOCAL, AdapterVersion, Caller, Quota
from tests.server.jobs.stand import GOOD, STARTED, USER, Place
from training.events import Advised, event_to_json
from training.spec import LoraSpec, TrainSpec


def test_a_job_that_goes_well(place: Place) -> None:
    with place.supervised():
        job_id = place.create(GOOD, metadata={"a": "b"})
        job = place.wait(job_id, "succeeded")

    assert (job.fine_tuned_model, job.trained_tokens, job.error) == ("bot@1", 7, None)
    version = place.registry.resolve("bot", USER)
    assert version.lineage.job == job_id
    assert [file.name for file in version.lineage.data] == ["rows.jsonl"]
    assert version.lineage.data[0].sha256 == place.files.get(LOCAL, job.request.training_file).sha256
    newest, first = place.jobs.checkpoints(LOCAL, job_id)
    assert (first.step, first.model) == (2, f"{job_id}@1")
    assert first.metrics["full_valid_loss"] == 0.25
    assert (newest.step, newest.metrics["train_loss"]) == (4, 0.25)
    assert place.registry.resolve(job_id, USER).version == 2
    said = place.said(job_id)
    assert "Step 2/4: validation loss=0.2500, exact_match=0.5000" in said
    assert "Step 4/4: training loss=0.2500" in said
    assert said[-1] == "The job has successfully completed"
    assert [entry.actor for entry in place.registry.audit(subject="bot@1")] == ["key-0123"]
    assert place.count("succeeded") == 1
    assert not (place.folder / "data/training/jobs" / job_id / "run/checkpoints").exists()


def test_the_process_is_told_its_bounds_and_no_secret(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTILORA_ADMIN_KEY", "secret-of-the-operator")
    seen = place.folder / "seen"
    with place.supervised():
        place.wait(place.create([["touch", str(seen)], ["done", 1]]), "succeeded")
    found = json.loads(seen.read_text())
    assert (found["work"]["threads"], found["work"]["nice"], found["work"]["memory_bytes"]) == (1, 3, 1 << 30)
    assert found["environment"]["OMP_NUM_THREADS"] == "1"
    assert "secret-of-the-operator" not in found["environment"].values()


def test_bad_data_ends_a_job_before_it_trains(place: Place) -> None:
    with place.supervised():
        job = place.wait(place.create("bad"), "failed")
    assert job.error is not None
    assert (job.error.code, job.error.fault) == ("invalid_training_file", "user")
    assert job.started is None


def test_one_of_a_group_fails_alone(place: Place) -> None:
    error = {"code": "diverged", "message": "the loss is nan at step 3", "fault": "user"}
    bad = place.create([["say", STARTED], ["fail", error]], "bad")
    good = place.create(GOOD, "good")
    with place.supervised():
        failed, done = place.wait(bad, "failed"), place.wait(good, "succeeded")
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("diverged", "the loss is nan at step 3")
    assert done.fine_tuned_model == "good@1"
    assert place.count("failed_user") == 1


def test_a_process_that_dies_again_and_again_is_given_up(place: Place) -> None:
    with place.supervised():
        job_id = place.create([["say", STARTED], ["save", 2], ["die", "SIGKILL"]])
        error = place.wait(job_id, "failed").error
    assert error is not None
    assert (error.code, error.fault) == ("worker_lost", "server")
    assert "killed by SIGKILL" in error.message
    assert place.count("failed_server") == 1
    assert 1 < place.metrics.training_deaths._value.get() < 10


def test_one_death_costs_nothing(place: Place) -> None:
    with place.supervised():
        job_id = place.create([*GOOD[:4], ["die", "SIGSEGV", str(place.folder / "died")], *GOOD[4:]])
        assert place.wait(job_id, "succeeded").fine_tuned_model == "bot@1"
    assert [checkpoint.step for checkpoint in place.jobs.checkpoints(LOCAL, job_id)] == [4, 2]
    assert any("The process that trained it ended: killed by SIGSEGV." in text for text in place.said(job_id))


def test_after_the_death_of_a_group_each_goes_on_alone(place: Place) -> None:
    killer = place.create([["words", "Boom"], ["die", "SIGKILL"]], "killer")
    good = place.create(GOOD, "good")
    with place.supervised():
        place.wait(good, "succeeded")
        error = place.wait(killer, "failed").error
    assert error is not None
    assert "its last words: Boom" in error.message


def test_memory_that_ends_is_the_users_to_mend(place: Place) -> None:
    with place.supervised():
        job = place.wait(
            place.create([["words", "terminate called after throwing std::bad_alloc"], ["die", "SIGABRT"]]),
            "failed",
        )
    assert job.error is not None
    assert (job.error.code, job.error.fault) == ("out_of_memory", "user")


def test_pause_and_resume(place: Place) -> None:
    with place.supervised():
        job_id = place.create([["say", STARTED], ["save", 1], ["stop"]])
        while not place.jobs.checkpoints(LOCAL, job_id):
            time.sleep(0.01)
        place.jobs.pause(USER, job_id)
        place.wait(job_id, "paused")
        assert place.registry.resolve(job_id, USER).version == 1
        place.files.path(place.job(job_id).request.training_file).write_text(json.dumps(GOOD))
        place.jobs.resume(USER, job_id)
        assert place.wait(job_id, "succeeded").fine_tuned_model == "bot@1"


def test_cancel_ends_the_process_at_once(place: Place) -> None:
    with place.supervised():
        job_id = place.create([["say", STARTED], ["save", 1], ["sleep", 60], *GOOD])
        while not place.jobs.checkpoints(LOCAL, job_id):
            time.sleep(0.01)
        place.jobs.cancel(USER, job_id)
        place.wait(job_id, "cancelled")
    assert place.count("cancelled") == 1
    assert place.registry.versions("bot") == ()


def test_a_result_that_is_cancelled_as_it_is_published_is_taken_back(place: Place) -> None:
    place.cancelled_as_it_is_published(GOOD)
    assert place.registry.versions("bot") == ()


def test_a_server_that_ends_has_jobs_saved_and_goes_on_with_them(place: Place) -> None:
    with place.supervised():
        job_id = place.create([["say", STARTED], ["save", 1], ["stop"]])
        while not place.jobs.checkpoints(LOCAL, job_id):
            time.sleep(0.01)
    assert (place.job(job_id).status, place.job(job_id).replica) == ("queued", "")
    place.files.path(place.job(job_id).request.training_file).write_text(json.dumps(GOOD))
    with place.supervised():
        place.wait(job_id, "succeeded")


def test_checkpoints_of_a_server_that_was_killed_are_published_later(place: Place) -> None:
    job_id = place.create(GOOD)
    claimed = place.jobs.claim_check()
    assert claimed is not None
    place.jobs.checked(job_id, claimed.request)
    (job,) = place.jobs.claim()
    checkpoint = place.folder / "data/training/jobs" / job.id / "run/checkpoints/step-00000002"
    shutil.copytree(place.adapter, checkpoint)
    place.jobs._opened = time.time() + 1
    with place.supervised():
        place.wait(job_id, "succeeded")
    assert [checkpoint.step for checkpoint in place.jobs.checkpoints(LOCAL, job_id)] == [4, 2]


def test_the_gate(place: Place) -> None:
    gate = {
        "event": "gate",
        "reason": "exact_match 0.10 is below the base's 0.50",
        "held_out": True,
        "scores": {"base": {"exact_match": 0.5}, "adapter": {"exact_match": 0.1}, "current": None},
    }
    with place.supervised():
        bad = place.create([*GOOD[:-1], ["say", {**gate, "passed": False}], GOOD[-1]])
        error = place.wait(bad, "failed").error
        assert error is not None
        assert (error.code, error.fault) == ("gate_not_passed", "user")
        assert "exact_match 0.10 is below the base's 0.50" in error.message
        assert place.registry.resolve(bad, USER).version == 2  # its checkpoints answer
        assert place.registry.versions("bot") == ()
        good = place.create([["say", {**gate, "passed": True, "reason": "better"}], ["done", 9]])
        place.wait(good, "succeeded")
    assert dict(place.registry.resolve("bot").lineage.scores) == {"exact_match": 0.1, "base.exact_match": 0.5}


def test_the_current_version_is_what_the_gate_compares_with(place: Place) -> None:
    seen = place.folder / "seen"
    with place.supervised():
        place.wait(place.create(GOOD), "succeeded")
        current = place.registry.resolve("bot")
        place.wait(place.create([["touch", str(seen)], ["done", 8]], gate_minimum=0.5), "succeeded")
        (work,) = json.loads(seen.read_text())["work"]["jobs"]
        assert work["gate"] == {"current": str(place.registry.folder(current.digest)), "minimum": 0.5}
        place.wait(place.create([["touch", str(seen)], ["done", 7]], gate=False, promote="no"), "succeeded")
        (work,) = json.loads(seen.read_text())["work"]["jobs"]
        assert work["gate"] is None
    assert place.registry.holders(current.digest) == 0
    assert [version.version for version in place.registry.versions("bot")] == [1, 2, 3]
    assert place.registry.resolve("bot").version == 2  # the third was not promoted


def test_a_checkpoint_over_the_quota_costs_no_training_and_a_result_fails(place: Place) -> None:
    place.registry.tenants.put("acme", Quota(max_versions=1))
    with place.supervised():
        job_id = place.create(GOOD, caller=Caller("acme"))
        job = place.wait(job_id, "failed")
    assert job.error is not None
    assert (job.error.code, job.error.fault) == ("quota_exceeded", "user")
    assert any(text.startswith("The checkpoint at step 4 can't be asked") for text in place.said(job_id))
    (checkpoint,) = place.jobs.checkpoints(LOCAL, job_id)
    assert checkpoint.model == f"acme/{job_id}@1"


def test_what_can_not_be_published_now_is_published_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.publication.RETRY_SECONDS", 0.01)
    tries = 0

    def publish(work: Any) -> tuple[AdapterVersion, bool]:
        nonlocal tries
        tries += 1
        if tries % 3:
            raise RegistryUnavailable("the store is away")
        version, is_new = work()
        return version, is_new

    place.publish = publish
    with place.supervised():
        assert place.wait(place.create(GOOD), "succeeded").fine_tuned_model == "bot@1"
    assert tries == 9


def test_advice_is_a_warning_and_only_what_fits_trains_together(place: Place) -> None:
    seen = place.folder / "seen"
    advice = ["say", event_to_json(Advised(3, "flat", "The loss does not move: raise the learning rate"))]
    first = place.create([["touch", str(seen)], ["say", STARTED], advice, ["done", 1]], "one")
    second = place.create(GOOD, "two", spec=TrainSpec(LoraSpec(rank=4)))
    third = place.create(GOOD, "three", spec=TrainSpec(LoraSpec(method="dora")))
    with place.supervised():
        for job_id in (first, second, third):
            place.wait(job_id, "succeeded")
    assert {job["id"] for job in json.loads(seen.read_text())["work"]["jobs"]} == {first, second}
    (event,) = [each for each in place.jobs.events(LOCAL, first, limit=100) if each.level == "warn"]
    assert event.message == "The loss does not move: raise the learning rate"


def test_when_the_supervisor_itself_fails_it_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path, failures = place.files.path, [RuntimeError("no such thing"), RegistryUnavailable("away")]

    def broken(file_id: str) -> Path:
        if failures:
            raise failures.pop()
        return path(file_id)

    monkeypatch.setattr(place.files, "path", broken)
    with place.supervised():
        job_id = place.create(GOOD)
        place.wait(job_id, "succeeded")
    assert failures == []
    assert any("The server failed with it: RuntimeError." in text for text in place.said(job_id))


def test_what_jobs_left_is_removed_with_them(place: Place) -> None:
    with place.supervised():
        job_id = place.create(GOOD)
        place.wait(job_id, "succeeded")
    folder = place.folder / "data/training/jobs"
    shutil.copytree(place.adapter, folder / job_id / "run/checkpoints/step-00000002")
    shutil.copytree(place.adapter, folder / ("ftjob-" + "0" * 24))
    with place.supervised():
        assert {path.name for path in folder.iterdir() if path.is_dir()} == {job_id}
        assert not (folder / job_id / "run/checkpoints").exists()
        assert not (folder / job_id / "adapter_model.safetensors").exists()


def test_a_parent_that_is_gone_is_told(place: Place) -> None:
    with place.supervised():
        error = place.wait(place.create(GOOD, parent="old@1", parent_digest="a" * 64), "failed").error
    assert error is not None
    assert (error.code, error.fault) == ("not_found", "user")
