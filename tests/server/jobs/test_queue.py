"""Claims: fair between tenants, of one server at a time, for what it can train."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import or_, update

from server.jobs import rows
from server.jobs.queue import LOST_SECONDS, MAX_ATTEMPTS, NewEvent
from server.jobs.records import Job
from server.jobs.schema import JOBS
from server.jobs.store import Jobs
from tests.server.jobs.world import ACME, BASE, OTHER, Site, sites
from training.protocol import Failure


def messages(site: Site, job: Job) -> list[str]:
    return [event.message for event in site.jobs.events(ACME, job.id, limit=100, oldest=True)]


def silence(site: Site, replica: str) -> None:
    with site.database.write() as write:
        late = update(JOBS).where(or_(JOBS.c.replica == replica, JOBS.c.keeper == replica))
        write.connection.execute(late.values(beat=time.time() - LOST_SECONDS - 1))


def test_one_job_of_a_tenant_does_not_wait_for_a_hundred_of_another(site: Site) -> None:
    many, one = site.file(ACME), site.file(OTHER)
    first = [site.queue(ACME, many).id for _ in range(20)]
    last = site.queue(OTHER, one).id
    served = []
    for _ in range(3):
        (job,) = site.jobs.claim(1)
        served.append(job.id)
        site.jobs.succeed(job.id, "shop@1")
    assert served == [first[0], last, first[1]]


def test_several_places_are_shared(site: Site) -> None:
    many, few = site.file(ACME), site.file(OTHER)
    first = [site.queue(ACME, many).id for _ in range(4)]
    last = [site.queue(OTHER, few).id for _ in range(2)]
    assert [job.id for job in site.jobs.claim(4)] == [first[0], last[0], first[1], last[1]]


def test_data_is_looked_at_in_fair_turns(site: Site) -> None:
    many, one = site.file(ACME), site.file(OTHER)
    first = [site.create(ACME, many).id for _ in range(4)]
    last = site.create(OTHER, one).id
    claimed = [site.jobs.claim_check() for _ in range(3)]
    assert [job.id for job in claimed if job] == [first[0], last, first[1]]
    later = site.jobs.claim_check(but=[first[2]])
    assert later is not None
    assert later.id == first[3]
    assert site.jobs.claim_check(but=[first[2]]) is None


def test_what_is_not_accepted_waits_on(site: Site) -> None:
    file = site.file(ACME)
    ids = [site.queue(ACME, file, name=name).id for name in ("a", "b", "c")]
    taken = site.jobs.claim(3, lambda job: job.request.name != "b")
    assert [job.id for job in taken] == [ids[0], ids[2]]
    assert site.jobs.get(ACME, ids[1]).status == "queued"


def test_many_at_a_time_never_take_the_same(pair: tuple[Site, ...]) -> None:
    file = pair[0].shared_file(ACME)
    ids = {pair[0].queue(ACME, file).id for _ in range(12)}
    claimed: list[str] = []

    def work(site: Site) -> None:
        while found := site.jobs.claim(2):
            claimed.extend(job.id for job in found)

    threads = [Thread(target=work, args=(site,)) for site in pair for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 12
    assert set(claimed) == ids


def test_only_the_server_with_the_files_trains(pair: tuple[Site, ...]) -> None:
    here, there = pair
    job = here.queue(ACME)
    assert there.jobs.claim(1) == ()
    assert [claimed.id for claimed in here.jobs.claim(1)] == [job.id]


def test_only_a_server_of_the_same_base_trains(migrated_url: str, tmp_path: Path) -> None:
    with sites(migrated_url, tmp_path, "here") as (here,):
        here.queue(ACME)
        other = Jobs(here.database, "here", "0" * 64)
        assert other.claim(1) == ()
        assert other.claim_check() is None
        assert len(here.jobs.claim(1)) == 1


def test_a_silent_server_loses_its_jobs_and_is_told(pair: tuple[Site, ...]) -> None:
    here, there = pair
    job = here.queue(ACME, here.shared_file(ACME))
    here.jobs.claim(1)
    assert there.jobs.claim(1) == ()
    silence(here, "here")
    (again,) = there.jobs.claim(1)
    assert (again.id, again.replica, again.resume, again.attempts) == (job.id, "there", True, 2)
    assert here.jobs.heartbeat([job.id]) == {job.id: "lost"}
    assert not here.jobs.succeed(job.id, "shop@1")
    assert here.jobs.add_checkpoint(job.id, 5, "x@1", {}) is None
    assert there.jobs.heartbeat([job.id]) == {job.id: "run"}
    assert messages(here, job)[-2:] == [
        "The server that worked on it is silent. The job waits for its next turn.",
        "The server that has the job's state is silent: the job begins anew on another.",
    ]


def kept(site: Site) -> Job:
    """A job that has trained there, and that others could train too."""
    job = site.queue(ACME, site.shared_file(ACME))
    for claimed in site.jobs.claim(10):
        assert site.jobs.stopped(claimed.id)
    return job


def test_a_job_that_stopped_keeps_to_the_server_that_has_its_state(pair: tuple[Site, ...]) -> None:
    here, there = pair
    job = kept(here)
    before = there.database.revision()
    assert there.jobs.claim(1) == ()
    assert there.database.revision() == before, "no transaction in vain"
    (again,) = here.jobs.claim(1)
    assert (again.id, again.keeper) == (job.id, "here")
    assert messages(here, job)[-1] == "The job goes on"


def test_a_job_begins_anew_when_the_server_that_has_its_state_is_silent(pair: tuple[Site, ...]) -> None:
    here, there = pair
    job = kept(here)
    silence(here, "here")
    (again,) = there.jobs.claim(1)
    assert (again.id, again.keeper, again.attempts) == (job.id, "there", 1)
    assert "begins anew" in messages(here, job)[-1]
    there.jobs.stopped(job.id)
    assert here.jobs.claim(1) == (), "now it is the other one's"


@pytest.mark.parametrize("how", ["keep", "heartbeat", "recover"])
def test_a_server_that_lives_keeps_what_waits_for_it(how: str, pair: tuple[Site, ...]) -> None:
    here, there = pair
    kept(here)
    paused, other = kept(here), here.create(ACME)
    here.jobs.pause(ACME, paused.id)
    assert here.jobs.claim_check() is not None
    silence(here, "here")
    if how == "keep":
        here.jobs.keep()
    elif how == "heartbeat":
        here.jobs.heartbeat([other.id])
    else:
        assert Jobs(here.database, "here", BASE).recover() == (other.id,)
    here.jobs.resume(ACME, paused.id)
    assert there.jobs.claim(2) == ()
    before = here.database.revision()
    here.jobs.keep()
    assert here.database.revision() == before, "they were just kept"
    assert len(here.jobs.claim(2)) == 2


def test_a_job_that_was_stopped_late_is_kept(pair: tuple[Site, ...]) -> None:
    here, there = pair
    job = here.queue(ACME, here.shared_file(ACME))
    here.jobs.claim(1)
    silence(here, "here")  # the machine was asleep
    here.jobs.stopped(job.id)
    assert there.jobs.claim(1) == ()


def test_what_others_keep_or_train_or_nobody_can_train_here_is_not_kept(pair: tuple[Site, ...]) -> None:
    here, there = pair
    kept(here)
    silence(here, "here")
    before = here.database.revision()
    there.jobs.keep()
    Jobs(here.database, "here", "0" * 64).keep()
    assert here.database.revision() == before
    here.jobs.keep()
    assert here.database.revision() == before + 1


@pytest.mark.parametrize("how", ["succeed", "fail", "cancel"])
def test_nobody_keeps_a_job_that_is_over(how: str, site: Site) -> None:
    job = kept(site)
    site.jobs.claim(1)
    if how == "succeed":
        site.jobs.succeed(job.id, "shop@1")
    elif how == "fail":
        site.jobs.fail(job.id, Failure("diverged", "the loss is nan"))
    else:
        site.jobs.cancel(ACME, job.id)
    assert site.jobs.get(ACME, job.id).keeper == ""


def test_who_gives_way_is_told_and_loses_no_attempt(site: Site) -> None:
    job = site.queue(ACME)
    site.jobs.claim(1)
    assert site.jobs.stopped(job.id, for_others=True)
    given = site.jobs.get(ACME, job.id)
    assert (given.status, given.attempts, given.replica) == ("queued", 0, "")
    text = "The job waits for its next turn: others wait too."
    assert messages(site, job)[-1] == text
    site.jobs.claim(1)
    site.jobs.pause(ACME, job.id)
    site.jobs.stopped(job.id, for_others=True)
    assert messages(site, job).count(text) == 1, "it waits for its owner, and not for others"


def test_a_job_that_kills_its_worker_fails_in_the_end(site: Site) -> None:
    job = site.queue(ACME)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        (claimed,) = site.jobs.claim(1)
        assert claimed.attempts == attempt
        assert site.jobs.lost(job.id, "The process was killed.")
    failed = site.jobs.get(ACME, job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.fault) == ("worker_lost", "server")
    assert site.jobs.claim(1) == ()


def test_a_checkpoint_counts_as_progress(site: Site) -> None:
    job = site.queue(ACME)
    for step in range(MAX_ATTEMPTS + 2):
        site.jobs.claim(1)
        assert site.jobs.add_checkpoint(job.id, step, f"{job.id}@1", {"train_loss": 1.0}) is not None
        site.jobs.lost(job.id, "The process was killed.")
    assert site.jobs.get(ACME, job.id).status == "queued"


def test_a_server_that_stops_itself_is_no_attempt(site: Site) -> None:
    job = site.queue(ACME)
    for _ in range(MAX_ATTEMPTS + 2):
        site.jobs.claim(1)
        assert site.jobs.stopped(job.id)
    assert site.jobs.get(ACME, job.id).status == "queued"


def test_after_a_start_what_ran_waits_again_and_goes_on(site: Site) -> None:
    job = site.queue(ACME)
    site.jobs.claim(1)
    again = Jobs(site.database, "here", BASE)
    assert again.recover() == (job.id,)
    assert again.recover() == ()
    (claimed,) = again.claim(1)
    assert claimed.resume
    assert again.recover() == (), "what it has claimed itself stays"


def test_when_it_will_be_done_is_told_with_the_heartbeat(site: Site) -> None:
    job = site.queue(ACME)
    site.jobs.claim(1)
    site.jobs.heartbeat([job.id], {job.id: 1234.5})
    assert site.jobs.get(ACME, job.id).estimated_finish == 1234.5
    site.jobs.stopped(job.id)
    assert site.jobs.get(ACME, job.id).estimated_finish is None


def test_what_a_failure_says_is_kept(site: Site) -> None:
    job = site.create(ACME)
    assert site.jobs.claim_check() is not None
    failure = Failure("invalid_training_file", "line 3: no \0 content", "training_file", "user", ("line 3",))
    assert site.jobs.fail(job.id, failure)
    failed = site.jobs.get(ACME, job.id)
    assert failed.error == Failure(
        "invalid_training_file", "line 3: no  content", "training_file", "user", ("line 3",)
    )
    last = site.jobs.events(ACME, job.id, limit=1)[0]
    assert (last.level, last.data) == ("error", {"code": "invalid_training_file", "fault": "user"})
    assert failed.finished is not None


def test_a_checkpoint_of_the_same_step_is_replaced(site: Site) -> None:
    job = site.queue(ACME)
    site.jobs.claim(1)
    site.jobs.add_checkpoint(job.id, 5, f"{job.id}@1", {"train_loss": 1.0})
    site.jobs.add_checkpoint(job.id, 5, f"{job.id}@2", {"train_loss": 0.5})
    (checkpoint,) = site.jobs.checkpoints(ACME, job.id)
    assert (checkpoint.model, checkpoint.metrics) == (f"{job.id}@2", {"train_loss": 0.5})


def test_metrics_have_an_end_and_messages_have_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_EVENTS", 6)
    job = site.queue(ACME)
    site.jobs.claim(1)
    step = NewEvent("step", type="metrics", data={"step": 1})
    assert site.jobs.add_events(job.id, [step] * 5)
    assert site.jobs.add_event(job.id, "warn", "careful")
    told = site.jobs.events(ACME, job.id, limit=100)
    assert [event.message for event in told[:2]] == ["careful", "step"]
    assert len(told) == 7


def test_who_waits_is_woken(site: Site) -> None:
    woken: list[str] = []
    site.jobs.wake = lambda: woken.append("woken")
    job = site.create(ACME)
    assert len(woken) == 1
    site.jobs.claim_check()
    site.jobs.checked(job.id, job.request)
    assert len(woken) == 2


def test_a_look_that_finds_nothing_writes_nothing(site: Site) -> None:
    before = site.database.revision()
    assert site.jobs.claim(1) == ()
    assert site.jobs.claim_check() is None
    assert site.jobs.heartbeat([]) == {}
    assert site.database.revision() == before


def test_counts(site: Site) -> None:
    file = site.file(ACME)
    site.queue(ACME, file)
    site.create(ACME, file)
    assert site.jobs.counts() == {"queued": 1, "validating_files": 1}
