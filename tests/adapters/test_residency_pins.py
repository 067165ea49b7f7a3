"""Pinned adapters in the tiers: brought, kept, and never in the way of a request."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapters.errors import InvalidAdapter
from adapters.residency import Residency
from tests.adapters.tiers import META, Disk, lease, residency_of, settle, until, uploads


def _tend(residency: Residency, done: Callable[[], object]) -> None:
    def tended() -> object:
        residency.tend()
        return done()

    until(tended)


def _there(residency: Residency) -> set[str]:
    return {adapter.digest for adapter in residency.loaded() if adapter.pinned and adapter.tier == "device"}


def test_pins_are_brought_and_stay() -> None:
    disk = Disk()
    with residency_of(3, disk) as residency:
        residency.pin("ab")
        lacked = residency.lacks_pins
        _tend(residency, lambda: _there(residency) == {*"ab"})
        assert (lacked, residency.lacks_pins) == (True, False)
        for digest in "cde":
            lease(residency, digest)
            residency.release(digest)
        assert _there(residency) == {*"ab"}
        assert residency.state("e") == "device"
        assert disk.reads == [*"abcde"]
        residency.pin("e")
        assert residency.pins == 1
        lease(residency, "f")
        assert residency.state("e") == "device"


def test_pins_take_the_room_of_what_nobody_holds() -> None:
    with residency_of(2) as residency:
        for digest in "xy":
            lease(residency, digest)
        residency.release("x")
        residency.pin("ab")
        _tend(residency, lambda: _there(residency) == {"a"})
        for _ in range(20):
            residency.tend()
        assert residency.state("y") == "device"
        assert residency.device.leases == {"y": 1}


def test_more_pins_than_room_are_told_and_block_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    with residency_of(2, disk) as residency:
        clock = [0.0]
        monkeypatch.setattr(residency._pins, "_clock", lambda: clock[0])
        residency.pin(["a", "b", "c"])
        _tend(
            residency, lambda: _there(residency) == {*"ab"} and "c" in disk.reads and not residency._loading
        )
        for _ in range(10):
            clock[0] += 100
            residency.tend()
        assert disk.reads == [*"abc"]  # it is known that there is no room for it
        assert "pinned adapter c has no room" in caplog.text
        lease(residency, "x")
        assert _there(residency) == {"b"}
        assert "pinned adapter a made room" in caplog.text
        assert residency.acquire("c") is None  # `b` stays: `x` can make room, when it is let go
        residency.release("x")
        lease(residency, "c")
        assert _there(residency) == {*"bc"}


def test_a_pin_that_made_room_comes_back_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with residency_of(2) as residency:
        clock = [0.0]
        monkeypatch.setattr(residency._pins, "_clock", lambda: clock[0])
        residency.pin("ab")
        _tend(residency, lambda: _there(residency) == {*"ab"})
        lease(residency, "x")
        residency.release("x")
        for _ in range(10):
            residency.tend()
        settle(residency)
        assert residency.state("a") == "disk"
        clock[0] += 60
        _tend(residency, lambda: _there(residency) == {*"ab"})
        assert residency.state("x") == "disk"


def test_a_pin_that_can_not_be_read_leaves_the_way_to_others(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    disk.broken["bad"] = InvalidAdapter("bad is damaged")
    with residency_of(2, disk) as residency:
        residency.pin(["bad", "a"])
        _tend(residency, lambda: _there(residency) == {"a"})
        assert "pinned adapter bad is not in memory: bad is damaged" in caplog.text
        with pytest.raises(InvalidAdapter):
            lease(residency, "bad")
        assert residency.evict("bad")
        assert residency.pins == 1


def test_pins_on_a_device_of_its_own_are_copied_there() -> None:
    with uploads(2, "a", "x") as (residency, uploader):
        residency.pin(["a", "b"])
        _tend(residency, lambda: {*uploader.events} == {"a", "b"})
        assert residency.device.arriving == {"a", "b"}
        for event in uploader.events.values():
            event.reached.set()
        _tend(residency, lambda: not residency.device.arriving)
        assert _there(residency) == {"a", "b"}
        until(lambda: residency.acquire("x") is None and "x" in uploader.events)  # they make room for it
        uploader.events["x"].reached.set()
        assert residency.acquire("x") is not None
        assert _there(residency) == {"b"}


def test_what_is_in_memory_is_listed_once_with_its_rank() -> None:
    with residency_of(2, device=META) as residency:
        residency.pin(["b3"])
        for digest in ("a2", "c"):
            residency.prefetch(digest)
            settle(residency)
        assert residency.acquire("a2") is not None
        listed = {adapter.digest: (adapter.tier, adapter.rank) for adapter in residency.loaded()}
        assert listed == {"a2": ("device", 2), "c": ("host", 1)}
        assert residency.loaded() is residency.loaded()
