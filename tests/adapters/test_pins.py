"""Which pin is brought next, when those that had to leave come back, and what the log says."""

from __future__ import annotations

import logging

import pytest

from adapters.errors import InvalidAdapter
from adapters.pins import Pins


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _pins(clock: Clock, digests: str) -> Pins:
    pins = Pins(clock)
    pins.set(digests)
    return pins


def _next(pins: Pins, there: str = "", room: int = 100) -> str | None:
    return pins.next({*there}, room) if pins.due() else None


def test_the_first_that_is_missing_comes_first(clock: Clock) -> None:
    pins = _pins(clock, "abc")
    assert _next(pins) == "a"
    assert _next(pins, "a") == "b"
    assert _next(pins, "abc") is None
    assert not pins.due()  # nothing to look for
    assert len(pins) == 3
    assert pins.missing("b") == ["a", "c"]
    pins.set("cd")
    assert "a" not in pins
    assert _next(pins, "c") == "d"


def test_pinning_the_same_again_changes_nothing(clock: Clock) -> None:
    """Whatever changes in the registry, its pins are set again."""
    pins = _pins(clock, "ab")
    pins.made_room("a")
    pins.set("ab")
    assert _next(pins, "b") is None
    pins.set("abc")
    assert _next(pins, "b") == "c"


def test_without_pins_nothing_is_due(clock: Clock) -> None:
    assert not _pins(clock, "").due()


def test_what_does_not_fit_is_told_once_and_others_are_brought(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    pins = _pins(clock, "ab")
    pins.loaded("a", 200)
    assert _next(pins, room=100) == "b"
    assert _next(pins, "b", room=50) is None
    clock.now += 61
    assert _next(pins, "b", room=50) is None
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "pinned adapter a has no room: it takes 0.0 MiB, and the others leave"
    )
    clock.now += 61
    assert _next(pins, "b", room=200) == "a"


def test_one_that_made_room_comes_back_after_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    pins = _pins(clock, "a")
    pins.made_room("a")
    pins.made_room("not pinned")
    assert _next(pins) is None
    clock.now += 59
    assert _next(pins) is None
    clock.now += 1
    assert _next(pins) == "a"
    (record,) = caplog.records
    assert "pinned adapter a made room for an adapter that was asked" in record.getMessage()


def test_one_that_fails_is_tried_again_and_told_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    pins = _pins(clock, "a")
    for _ in range(3):
        assert _next(pins) == "a"
        pins.failed("a", InvalidAdapter("it is damaged"))
        assert _next(pins) is None
        clock.now += 60
    (record,) = caplog.records
    assert record.getMessage() == "pinned adapter a is not in memory: it is damaged"


def test_one_for_which_leases_leave_no_room_is_tried_again_soon(clock: Clock) -> None:
    pins = _pins(clock, "a")
    pins.no_room("a")
    assert _next(pins) is None
    clock.now += 5
    assert _next(pins) == "a"


def test_one_that_was_deleted_is_pinned_no_more(clock: Clock) -> None:
    pins = _pins(clock, "a")
    pins.remove("a")
    pins.failed("a", InvalidAdapter("gone"))
    assert not pins.due()
    assert "a" not in pins
