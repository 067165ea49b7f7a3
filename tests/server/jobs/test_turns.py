"""Whose turn it is when jobs have trained for a while and others wait."""

from __future__ import annotations

import pytest

from server.jobs.records import Job
from tests.server.jobs.world import ACME, OTHER, Site


def claimed(site: Site, count: int = 1) -> list[str]:
    return [job.id for job in site.jobs.claim(count)]


def anybody(job: Job) -> bool:
    return True


def nobody(job: Job) -> bool:
    return False


def test_with_nobody_waiting_nothing_is_stopped(site: Site) -> None:
    site.queue(ACME)
    ids = claimed(site)
    site.create(OTHER)  # its data was not looked at yet
    before = site.database.revision()
    assert site.jobs.whose_turn(ids, anybody) == "free"
    assert site.database.revision() == before


def test_another_tenant_is_let_in_and_the_turns_go_round(site: Site) -> None:
    first, second = site.queue(ACME).id, site.queue(OTHER).id
    for job_id in (first, second, first, second):
        assert claimed(site) == [job_id]
        assert site.jobs.whose_turn([job_id]) == "others"
        site.jobs.stopped(job_id, for_others=True)


def test_a_tenant_alone_is_served_first_come_first_served(site: Site) -> None:
    ids = [site.queue(ACME).id for _ in range(3)]
    for _ in range(3):
        assert claimed(site) == ids[:1]
        assert site.jobs.whose_turn(ids[:1], nobody) == "free"
        site.jobs.stopped(ids[0])
    assert claimed(site, 1) == ids[:1]
    assert site.jobs.whose_turn(ids[:1], anybody) == "others", "the second could join it"
    assert site.jobs.whose_turn(ids[:1], None) == "free", "there is no room"


def test_a_tenant_that_has_a_job_in_the_group_waits_for_it(site: Site) -> None:
    for caller in (ACME, OTHER, ACME, OTHER):
        site.queue(caller)
    ids = claimed(site, 2)
    assert site.jobs.whose_turn(ids, nobody) == "free"


def test_who_was_served_meanwhile_elsewhere_waits_for_one_turn_more(pair: tuple[Site, ...]) -> None:
    here, there = pair
    first, second, third = (here.queue(caller, here.shared_file(caller)) for caller in (ACME, OTHER, OTHER))
    assert claimed(here) == [first.id]
    assert claimed(there) == [second.id]
    there.jobs.succeed(second.id, "shop@1")
    assert here.jobs.whose_turn([first.id]) == "again"
    assert here.jobs.whose_turn([first.id]) == "others", "that was a turn"
    here.jobs.stopped(first.id)
    assert claimed(here) == [third.id]


def test_who_has_a_place_elsewhere_is_no_reason_to_stop(pair: tuple[Site, ...]) -> None:
    """The next claim would take the same again."""
    here, there = pair
    own, first, second = (here.queue(caller, here.shared_file(caller)) for caller in (ACME, OTHER, OTHER))
    assert claimed(here) == [own.id]
    assert claimed(there) == [first.id]
    assert here.jobs.whose_turn([own.id]) == "again"
    assert here.jobs.whose_turn([own.id]) == "again"
    here.jobs.stopped(own.id)
    assert claimed(here) == [own.id]
    there.jobs.succeed(first.id, "shop@1")
    assert here.jobs.whose_turn([own.id]) == "others"
    here.jobs.stopped(own.id)
    assert claimed(here) == [second.id]


@pytest.mark.parametrize("why", ["place", "keeper"])
def test_who_can_not_train_here_is_not_waited_for(why: str, pair: tuple[Site, ...]) -> None:
    here, there = pair
    ids = [here.queue(ACME).id]
    assert claimed(here) == ids
    other = there.queue(OTHER, there.shared_file(OTHER) if why == "keeper" else None)
    if why == "keeper":
        assert claimed(there) == [other.id]
        there.jobs.stopped(other.id)
    assert here.jobs.whose_turn(ids, anybody) == "free"
