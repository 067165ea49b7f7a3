"""Turns between adapters: the least served goes first, and idleness earns no credit."""

from __future__ import annotations

import pytest

from server.engine import fairness
from server.engine.detokenize import TextStream
from server.engine.fairness import FairQueue
from server.engine.sequence import Sequence
from tests.kit import Letters, ask


def _sequence(name: str, adapter: str | None = None, scope: str = "") -> Sequence:
    request = ask(name, [5, 6], adapter, scope=scope)
    return Sequence(request, "base", 4, TextStream(Letters(), request.prompt))


def _heads(queue: FairQueue) -> list[str]:
    return [sequence.request.request_id for sequence in queue.heads()]


def test_one_head_for_each_turn_the_least_served_first() -> None:
    queue = FairQueue()
    sequences = [_sequence(f"{adapter}{i}", adapter) for adapter in "ab" for i in range(3)]
    for sequence in sequences:
        queue.push(sequence)
    assert _heads(queue) == ["a0", "b0"]
    queue.charge(sequences[0].turn, 10)
    assert _heads(queue) == ["b0", "a0"]
    queue.charge(sequences[3].turn, 11)
    assert _heads(queue) == ["a0", "b0"]
    assert len(queue) == 6
    assert {*queue.waiting()} == {*sequences}


def test_scopes_with_the_same_adapter_take_turns_too() -> None:
    queue = FairQueue()
    for scope in ("x", "y"):
        queue.push(_sequence(scope, "a", scope))
    queue.charge(("x", "a"), 1)
    assert _heads(queue) == ["y", "x"]


def test_within_a_turn_first_come_first_served_and_the_preempted_before_all() -> None:
    queue = FairQueue()
    first, second, third = (_sequence(str(i), "a") for i in range(3))
    for sequence in (first, second, third):
        queue.push(sequence)
    queue.take(first)
    assert _heads(queue) == ["1"]
    queue.push_back(first)
    assert _heads(queue) == ["0"]
    queue.take(first)
    queue.take(second)
    queue.take(third)
    assert len(queue) == 0
    assert _heads(queue) == []


def test_a_newcomer_starts_level_with_those_that_stayed() -> None:
    queue = FairQueue()
    queue.push(_sequence("busy", "a"))
    queue.charge(("", "a"), 1000)
    queue.push(_sequence("new", "b"))
    queue.charge(("", "b"), 1)
    assert _heads(queue) == ["busy", "new"]


def test_a_turn_that_comes_back_keeps_what_it_was_charged() -> None:
    queue = FairQueue()
    heavy, light = _sequence("heavy", "a"), _sequence("light", "b")
    queue.push(light)
    queue.push(heavy)
    queue.charge(heavy.turn, 50)
    queue.take(heavy)
    queue.leave(heavy)
    queue.push(_sequence("again", "a"))
    assert _heads(queue) == ["light", "again"]


def test_absent_turns_are_forgotten_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "_REMEMBERED", 3)
    queue = FairQueue()
    stays = _sequence("stays", "stays")
    queue.push(stays)
    for i in range(20):
        sequence = _sequence(str(i), str(i))
        queue.push(sequence)
        queue.charge(sequence.turn, 1)
        queue.take(sequence)
        queue.leave(sequence)
        assert len(queue._served) <= 5
    assert stays.turn in queue._served
