"""Jobs as their tenants have them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update

from adapters.errors import AdapterConflict, TenantNotFound
from adapters.registry.records import LOCAL, Caller, Quota
from adapters.registry.schema import AUDIT
from server.jobs.errors import Conflict, JobError, NotThere, OverQuota
from server.jobs.records import new_id
from server.jobs.schema import CHECKPOINTS, EVENTS, FILES, JOBS, LABELS
from tests.server.jobs.world import ACME, OTHER, Site, request
from training.spec import LoraSpec, TrainSpec


def actions(site: Site) -> list[tuple[str, str, str]]:
    with site.database.read() as connection:
        rows = connection.execute(select(AUDIT).order_by(AUDIT.c.id)).mappings()
        return [(row["tenant"], row["actor"], row["action"]) for row in rows if "tenant" not in row["action"]]


def test_all_that_was_asked_is_kept(site: Site) -> None:
    spec = TrainSpec(lora=LoraSpec(rank=4, target_modules=("q_proj", "v_proj")), epochs=2, seed=7)
    asked: dict[str, Any] = {
        "spec": spec,
        "parent": "acme/shop@2",
        "parent_digest": "0" * 64,
        "suffix": "shop",
        "method": "supervised",
        "hyperparameters": {"n_epochs": 2, "batch_size": "auto"},
        "promote": "no",
        "gate": False,
        "gate_minimum": 0.5,
        "metadata": {"team": "a", "empty": ""},
    }
    job = site.create(ACME, **asked)
    again = site.jobs.get(ACME, job.id)
    assert again == job
    assert {name: getattr(again.request, name) for name in asked} == asked
    assert (again.status, again.tenant, again.actor) == ("validating_files", "acme", "key-acme")
    assert (again.target, again.checkpoint_name) == ("acme/shop", f"acme/{job.id}")
    assert not again.resume


def test_another_tenants_answer_as_what_never_was(site: Site) -> None:
    job, missing = site.create(ACME), new_id("ftjob")
    calls = (site.jobs.get, site.jobs.cancel, site.jobs.pause, site.jobs.resume)
    for call in (*calls, site.jobs.events, site.jobs.checkpoints):
        said = []
        for job_id in (job.id, missing):
            with pytest.raises(NotThere) as error:
                call(OTHER, job_id)
            said.append((str(error.value).replace(job_id, "ID"), error.value.code, error.value.param))
        assert said[0] == said[1]
    assert site.jobs.list(OTHER) == ()
    with pytest.raises(NotThere):
        site.jobs.list(OTHER, after=job.id)
    assert [found.id for found in site.jobs.list(LOCAL)] == [job.id]
    assert site.jobs.get(LOCAL, job.id).status == "validating_files"


def test_a_job_needs_files_of_its_own_tenant(site: Site) -> None:
    mine, theirs = site.file(ACME), site.file(OTHER)
    for caller in (ACME, Caller("acme", "boss", operator=True)):
        with pytest.raises(NotThere, match=f"training_file: No such File object: {theirs.id}"):
            site.jobs.create(caller, request(theirs))
        with pytest.raises(NotThere, match="validation_file: ") as error:
            site.jobs.create(caller, request(mine, validation_file=theirs.id))
        assert error.value.param == "validation_file"
    assert site.jobs.list(LOCAL) == ()


def test_results_are_nothing_to_train_on(site: Site) -> None:
    job = site.queue(ACME)
    with (
        site.files.results(job, {"step_metrics.csv": b"step,train_loss\n1,2\n"}) as results,
        site.database.write() as write,
    ):
        results.enter(write)
    (file,) = site.files.list(ACME, purpose="fine-tune-results")
    with pytest.raises(JobError, match=r"training_file: .* is of purpose fine-tune-results"):
        site.jobs.create(ACME, request(file))


def test_files_on_two_servers_are_a_conflict(pair: tuple[Site, ...]) -> None:
    here, there = pair
    one, other = here.file(ACME), there.file(ACME)
    with pytest.raises(Conflict, match="different servers"):
        here.jobs.create(ACME, request(one, validation_file=other.id))
    with here.database.write() as write:
        write.connection.execute(update(FILES).where(FILES.c.id == one.id).values(replica=""))
    here.jobs.create(ACME, request(one, validation_file=other.id))
    assert here.jobs.claim_check() is None
    assert there.jobs.claim_check() is not None


def test_lists_have_pages_and_filters(site: Site) -> None:
    file = site.file(ACME)
    labels = [{"team": "a"}, {"team": "b", "size": "s"}, {"team": "a", "size": "s"}, {"team": ""}, None]
    jobs = [site.create(ACME, file, metadata=each) for each in labels]
    ids = [job.id for job in reversed(jobs)]
    assert [job.id for job in site.jobs.list(ACME, limit=2)] == ids[:2]
    assert [job.id for job in site.jobs.list(ACME, limit=2, after=ids[1])] == ids[2:4]
    assert [job.id for job in site.jobs.list(ACME, after=ids[-1])] == []

    def found(**metadata: str) -> list[int]:
        chosen = {job.id for job in site.jobs.list(ACME, metadata=metadata)}
        return [index for index, job in enumerate(jobs) if job.id in chosen]

    assert found(team="a") == [0, 2]
    assert found(team="a", size="s") == [2]
    assert found(team="") == [3]
    assert found(**{"te'a\"m": "a"}) == []
    assert [job.id for job in site.jobs.list(ACME, no_metadata=True)] == [jobs[4].id]


def test_events_and_checkpoints_have_pages_in_both_directions(site: Site) -> None:
    job = site.queue(ACME)
    site.jobs.claim(1)
    for step in (10, 20, 30):
        site.jobs.add_checkpoint(job.id, step, f"{job.id}@{step}", {"train_loss": 1.0 / step})
    newest = site.jobs.events(ACME, job.id, limit=100)
    oldest = site.jobs.events(ACME, job.id, limit=100, oldest=True)
    assert newest == tuple(reversed(oldest))
    assert oldest[0].message == f"Created fine-tuning job: {job.id}"
    assert site.jobs.events(ACME, job.id, after=oldest[1].id, limit=2, oldest=True) == oldest[2:4]
    assert site.jobs.events(ACME, job.id, after=newest[1].id, limit=2) == newest[2:4]
    found = site.jobs.checkpoints(ACME, job.id)
    assert [checkpoint.step for checkpoint in found] == [30, 20, 10]
    assert [each.step for each in site.jobs.checkpoints(ACME, job.id, after=found[0].id, limit=1)] == [20]
    other = site.create(ACME)
    for call, after in ((site.jobs.events, newest[0].id), (site.jobs.checkpoints, found[0].id)):
        with pytest.raises(NotThere):
            call(ACME, other.id, after=after)
        with pytest.raises(NotThere):
            call(ACME, job.id, after="ftevent-zzz")


def test_a_paused_job_is_not_taken_and_one_that_stops_is_not_taken_twice(site: Site) -> None:
    job = site.queue(ACME)
    assert site.jobs.pause(ACME, job.id).status == "paused"
    assert site.jobs.pause(ACME, job.id).status == "paused"
    assert site.jobs.claim(1) == ()
    assert site.jobs.resume(ACME, job.id).status == "queued"
    site.jobs.claim(1)
    site.jobs.pause(ACME, job.id)
    assert site.jobs.heartbeat([job.id]) == {job.id: "pause"}
    # The worker has not stopped yet: nobody else may begin.
    assert site.jobs.resume(ACME, job.id).status == "running"
    assert site.jobs.claim(1) == ()
    assert site.jobs.heartbeat([job.id]) == {job.id: "run"}
    site.jobs.stopped(job.id)
    assert [claimed.id for claimed in site.jobs.claim(1)] == [job.id]


def test_a_job_that_is_looked_at_may_be_paused_too(site: Site) -> None:
    job = site.create(ACME)
    site.jobs.claim_check()
    site.jobs.pause(ACME, job.id)
    assert site.jobs.checked(job.id, replace(job.request, name="other"))
    assert site.jobs.get(ACME, job.id).status == "paused"
    resumed = site.jobs.resume(ACME, job.id)
    assert (resumed.status, resumed.request.name) == ("queued", "other")


def test_a_cancelled_job_never_succeeds(site: Site) -> None:
    job = site.queue(ACME)
    site.jobs.claim(1)
    cancelled = site.jobs.cancel(ACME, job.id)
    assert (cancelled.status, cancelled.finished is not None) == ("cancelled", True)
    assert site.jobs.cancel(ACME, job.id).finished == cancelled.finished
    assert site.jobs.heartbeat([job.id]) == {job.id: "cancel"}
    assert not site.jobs.succeed(job.id, "shop@1")
    assert site.jobs.stopped(job.id)
    assert site.jobs.get(ACME, job.id) == replace(cancelled, replica="", attempts=0)
    for call in (site.jobs.pause, site.jobs.resume):
        with pytest.raises(Conflict, match=f"{job.id} can't be .*: it has cancelled already"):
            call(ACME, job.id)


def test_what_is_over_stays_over(site: Site) -> None:
    job = site.queue(ACME)
    site.jobs.claim(1)
    site.jobs.succeed(job.id, "shop@1", 123, ["file-1"])
    done = site.jobs.get(ACME, job.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "shop@1", 123)
    assert done.result_files == ("file-1",)
    for call in (site.jobs.cancel, site.jobs.pause, site.jobs.resume):
        with pytest.raises(Conflict, match="it has succeeded already"):
            call(ACME, job.id)
    assert site.jobs.get(ACME, job.id) == done


def test_a_tenant_has_so_many_jobs_that_are_not_over(site: Site) -> None:
    site.tenant().put("acme", Quota(max_jobs=2))
    file = site.file(ACME)
    jobs = [site.create(ACME, file) for _ in range(2)]
    with pytest.raises(OverQuota, match="'acme' has 2 jobs that are not over"):
        site.create(ACME, file)
    site.create(OTHER)
    site.jobs.cancel(ACME, jobs[0].id)
    site.create(ACME, file)


def test_who_did_what_is_in_the_audit_log(site: Site) -> None:
    job = site.queue(ACME)
    boss = Caller("default", "boss", operator=True)
    site.jobs.pause(boss, job.id)
    site.jobs.resume(ACME, job.id)
    site.jobs.resume(ACME, job.id)
    site.jobs.cancel(ACME, job.id)
    assert actions(site) == [
        ("acme", "key-acme", "file.create"),
        ("acme", "key-acme", "job.create"),
        ("acme", "boss", "job.pause"),
        ("acme", "key-acme", "job.resume"),
        ("acme", "key-acme", "job.cancel"),
    ]


def test_a_tenant_with_files_or_jobs_stays_and_leaves_nothing(site: Site) -> None:
    tenants = site.tenant()
    job = site.queue(ACME, metadata={"team": "a"})
    site.jobs.claim(1)
    site.jobs.add_checkpoint(job.id, 1, f"{job.id}@1", {})
    with pytest.raises(AdapterConflict, match="'acme' still has file-"):
        tenants.remove("acme")
    site.jobs.cancel(ACME, job.id)
    site.files.delete(ACME, job.request.training_file)
    with pytest.raises(AdapterConflict, match=f"'acme' still has {job.id}"):
        tenants.remove("acme")
    site.jobs.stopped(job.id)
    tenants.remove("acme")
    with site.database.read() as connection:
        for table in (JOBS, EVENTS, CHECKPOINTS, LABELS, FILES):
            assert connection.execute(select(table)).first() is None
    with pytest.raises(TenantNotFound):
        site.file(ACME)
    tenants.put("acme")
    assert site.jobs.list(ACME) == ()


def test_old_figures_of_jobs_go_and_words_stay(site: Site) -> None:
    old, young, running = (site.queue(ACME) for _ in range(3))
    site.jobs.claim(3)
    for job in (old, young, running):
        for step in range(5):
            site.jobs.add_event(job.id, "info", f"Step {step}", "metrics", {"step": step})
        site.jobs.add_event(job.id, "warn", "the loss is flat")
    for job in (old, young):
        site.jobs.succeed(job.id, "shop@1")
    with site.database.write() as write:
        write.connection.execute(update(JOBS).where(JOBS.c.id == old.id).values(finished=1000.0))
    before = [event for event in site.jobs.events(ACME, old.id, limit=100) if event.type == "message"]
    assert [site.jobs.forget_metrics(2000.0, limit=3) for _ in range(3)] == [3, 2, 0]
    assert list(site.jobs.events(ACME, old.id, limit=100)) == before
    assert len(before) > 3
    newest, *_ = before
    assert site.jobs.events(ACME, old.id, after=newest.id, limit=1) == (before[1],), "pages go on over gaps"
    for job in (young, running):
        kept = [event for event in site.jobs.events(ACME, job.id, limit=100) if event.type == "metrics"]
        assert len(kept) == 5
