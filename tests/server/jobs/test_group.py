"""Jobs of several tenants in one process: what one does is not the others' loss."""

from __future__ import annotations

import time
from typing import Any

from adapters.registry.records import LOCAL, AdapterVersion, Caller
from tests.server.jobs.stand import GOOD, USER, Place


def test_data_that_kills_its_check_harms_no_other_tenant(place: Place) -> None:
    place.registry.tenants.put("acme")
    killer = place.create("kill", "killer", Caller("acme"))
    good = [place.create([["done", step]], f"good-{step}") for step in (1, 2)]
    with place.supervised():
        for job_id in good:
            place.wait(job_id, "succeeded")
        error = place.wait(killer, "failed").error
    assert error is not None
    assert error.code == "worker_lost"
    for job_id in good:
        assert sum("ended: killed by SIGKILL" in text for text in place.said(job_id)) == 1
        assert not any("words of a tenant" in text for text in place.said(job_id))


def test_memory_that_one_of_a_group_took_does_not_fail_the_others(place: Place) -> None:
    killer = place.create([["words", "what(): std::bad_alloc"], ["die", "SIGABRT"]], "killer")
    good = place.create(GOOD, "good")
    with place.supervised():
        place.wait(good, "succeeded")
        error = place.wait(killer, "failed").error
    assert error is not None
    assert error.code == "out_of_memory"
    assert not any("bad_alloc" in text for text in place.said(good))


def test_figures_that_are_no_numbers_are_left_out(place: Place) -> None:
    scores = {
        "adapter": {"validation_loss": float("nan")},
        "base": {"validation_loss": float("inf"), "f1": 1.0},
    }
    gate = {"event": "gate", "reason": "the validation loss is nan", "held_out": True, "scores": scores}
    with place.supervised():
        job_id = place.create([["say", {**gate, "passed": False}], ["done", 1]])
        place.wait(job_id, "failed")
    events = place.jobs.events(LOCAL, job_id, limit=100)
    (event,) = [event for event in events if event.message.startswith("Evaluation gate")]
    assert event.data is not None
    assert event.data["scores"] == {"adapter": {}, "base": {"f1": 1.0}}


def test_a_parent_that_is_no_longer_shared_is_not_trained_on(place: Place) -> None:
    place.registry.tenants.put("acme")
    parent, _ = place.registry.publish_folder("shop", place.adapter, caller=USER)
    fields = {"parent": "default/shop@1", "parent_digest": parent.digest}
    place.registry.share("shop", "acme", caller=USER)
    with place.supervised():
        shared = place.create([["done", 5]], caller=Caller("acme"), **fields)
        place.wait(shared, "succeeded")
        place.registry.unshare("shop", "acme", caller=USER)
        error = place.wait(place.create([["done", 6]], caller=Caller("acme"), **fields), "failed").error
    assert error is not None
    assert (error.code, error.fault) == ("not_found", "user")


def test_what_fails_because_the_server_ends_is_no_fault_of_the_job(place: Place) -> None:
    def publish(work: Any) -> tuple[AdapterVersion, bool]:
        place.stopping.set()
        raise RuntimeError("Event loop is closed")

    place.publish = publish
    with place.supervised():
        job_id = place.create(GOOD)
        assert place.stopping.wait(20)
    assert place.job(job_id).status in ("running", "queued")
    place.jobs._opened = time.time() + 1
    place.publish = lambda work: work()
    with place.supervised():
        place.wait(job_id, "succeeded")
