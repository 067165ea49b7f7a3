"""Time slices: a job gives way when others wait, and comes further in every turn."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from adapters.errors import RegistryUnavailable
from adapters.registry.records import LOCAL, Caller
from server.jobs import slice
from server.jobs.site import Bounds, Entry, Site
from server.jobs.slice import Slice, note_checkpoint, turn_end
from server.jobs.supervisor import _note
from tests.server.jobs.stand import GOOD, STARTED, Place, progress
from training.folder import RunFolder
from training.spec import LoraSpec, TrainSpec

ALONE = TrainSpec(LoraSpec(method="dora"))
GAVE_WAY = "The job waits for its next turn: others wait too."


def long(place: Place, *more: Any) -> list[Any]:
    """It gives way once, after three steps, and goes on when it is started again."""
    return [
        ["say", STARTED],
        progress(1),
        ["save", 2],
        ["stop", str(place.folder / "gave_way"), 3],
        *more,
        ["save", 4],
        ["done", 4],
    ]


def running(place: Place, job_id: str) -> None:
    deadline = time.monotonic() + 20
    while not place.jobs.checkpoints(LOCAL, job_id):
        assert time.monotonic() < deadline, place.said(job_id)
        time.sleep(0.01)


def test_a_short_job_of_another_tenant_is_done_before_a_long_one(place: Place) -> None:
    place.registry.tenants.put("acme")
    with place.supervised(slice_seconds=0.05):
        first = place.create(long(place), "long", spec=ALONE)
        running(place, first)
        second = place.create([["done", 1]], "short", Caller("acme"))
        done, given = place.wait(first, "succeeded"), place.wait(second, "succeeded")
    assert done.finished is not None
    assert given.finished is not None
    assert given.finished < done.finished
    assert done.attempts <= 1, "to give way is no failure"
    assert place.said(first).count(GAVE_WAY) == 1
    assert [checkpoint.step for checkpoint in place.jobs.checkpoints(LOCAL, first)] == [4, 2]
    assert place.said(first).count("The job goes on") == 1


def test_what_could_join_is_let_in(place: Place) -> None:
    seen = place.folder / "seen"
    with place.supervised(slice_seconds=0.05):
        first = place.create(long(place, ["touch", str(seen)]), "long")
        running(place, first)
        second = place.create(GOOD, "newcomer")
        place.wait(first, "succeeded")
        place.wait(second, "succeeded")
    assert {job["id"] for job in json.loads(seen.read_text())["work"]["jobs"]} == {first, second}


def test_within_a_tenant_what_can_not_join_waits(place: Place) -> None:
    actions = [["say", STARTED], progress(1), ["save", 1], ["sleep", 0.5], ["done", 1]]
    with place.supervised(slice_seconds=0.05):
        first = place.create(actions, "first")
        running(place, first)
        second = place.create([["done", 2]], "second", spec=ALONE)
        place.wait(second, "succeeded")
    assert GAVE_WAY not in place.said(first)
    begun, waited = place.job(first), place.job(second)
    assert begun.finished is not None
    assert waited.started is not None
    assert begun.finished <= waited.started


class Group:
    """Entries of a process, and a queue that says whose turn it is."""

    def __init__(self, *turns: Any, slice_seconds: float = 0.0, together: int = 2) -> None:
        self.turns, self.asked = list(turns), list[tuple[list[str], bool]]()
        self.stopping = threading.Event()
        bounds = Bounds(together=together, slice_seconds=slice_seconds)
        site = SimpleNamespace(jobs=self, bounds=bounds, stopping=self.stopping)
        self.slice = Slice(cast(Site, site), lambda job: True)
        self.entries = [Entry(cast(Any, SimpleNamespace(id=name)), (), 0) for name in ("a", "b")]

    def whose_turn(self, ids: list[str], joins: Any) -> Any:
        self.asked.append((ids, joins is not None))
        turn = self.turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        return turn

    def is_over(self) -> bool:
        return self.slice.is_over(self.entries)


def test_the_time_counts_from_the_first_step() -> None:
    group = Group("others")
    assert not group.is_over()
    assert group.asked == []
    group.slice.step()
    assert group.is_over()


def test_before_its_time_is_over_nobody_is_asked() -> None:
    group = Group(slice_seconds=1000)
    group.slice.step()
    assert not group.is_over()
    assert group.asked == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(now=0.0)
    monkeypatch.setattr(slice, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_where_nobody_waits_it_looks_again_later(clock: SimpleNamespace) -> None:
    group = Group("free", RegistryUnavailable("away"), "others")
    group.slice.step()
    for asked in (1, 2):
        assert not group.is_over()
        assert not group.is_over(), "not at once"
        assert len(group.asked) == asked
        clock.now += slice.LOOK_SECONDS
    assert group.is_over()


def test_a_new_turn_is_as_long_as_the_first(clock: SimpleNamespace) -> None:
    group = Group("again", "others", slice_seconds=100)
    group.slice.step()
    clock.now = 100
    assert not group.is_over()
    group.slice.step()
    clock.now = 199
    assert not group.is_over()
    clock.now = 200
    assert group.is_over()


def test_there_is_room_for_as_many_as_left() -> None:
    group = Group("free", "free")
    group.slice.step()
    group.is_over()
    group.entries[0].ended = True
    group.slice = Slice(group.slice._site, group.slice._joins)
    group.slice.step()
    group.is_over()
    assert group.asked == [(["a", "b"], False), (["b"], True)]


def test_who_took_all_its_steps_waits_for_no_other_longer_than_a_turn() -> None:
    group = Group()
    group.entries[0].trained = True
    group.slice.step()
    assert group.is_over()
    group.entries[1].asked_to_stop = True
    assert not group.is_over(), "nobody trains any more"


def test_a_server_that_ends_stops_all_anyway() -> None:
    group = Group("others")
    group.slice.step()
    group.stopping.set()
    assert not group.is_over()


def test_the_checkpoint_of_a_turn_s_end_is_there_until_the_next(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (2, 3, 5, 8):
        run.checkpoint(step).mkdir(parents=True)
    assert turn_end(run) is None
    note_checkpoint(run, 2, ends_turn=False)
    note_checkpoint(run, 3, ends_turn=True)
    assert (turn_end(run), run.steps()) == (3, [2, 3, 5, 8])
    note_checkpoint(run, 5, ends_turn=True)
    assert (turn_end(run), run.steps()) == (5, [2, 5, 8])
    note_checkpoint(run, 5, ends_turn=False)  # the run had planned that one
    assert (turn_end(run), run.steps()) == (None, [2, 5, 8])
    (run.run / "turn_end").touch()  # half of it was written
    assert turn_end(run) is None


def test_who_goes_on_alone_does_so_in_the_next_turn_too() -> None:
    alone = {"a", "b", "c"}
    jobs = cast(Any, [SimpleNamespace(id="a"), SimpleNamespace(id="b")])
    _note(alone, jobs, cast(Any, SimpleNamespace(died=False, given_way={"a"})))
    assert alone == {"a", "c"}
