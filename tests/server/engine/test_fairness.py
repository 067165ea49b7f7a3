"""Turns between tenants and their adapters: the least served goes first, and idleness earns no credit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine import fairness
from server.engine.detokenize import TextStream
from server.engine.fairness import FairQueue
from server.engine.sequence import Sequence
from server.engine.stats import TenantStats
from tests.kit import Letters, ask


def _sequence(name: str, adapter: str | None = None, tenant: str = "") -> Sequence:
    request = ask(name, [5, 6], adapter, tenant=tenant)
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


def test_tenants_with_the_same_adapter_take_turns_too() -> None:
    queue = FairQueue()
    for tenant in ("x", "y"):
        queue.push(_sequence(tenant, "a", tenant))
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


def _serve(queue: FairQueue, tokens: int) -> str:
    """Take the one that is next, and charge its turn."""
    head = next(queue.heads())
    queue.take(head)
    queue.charge(head.turn, tokens)
    return head.request.request_id


def test_a_tenant_has_one_turn_however_many_adapters_it_asks() -> None:
    queue = FairQueue()
    for index in range(12):
        queue.push(_sequence(f"many{index}", f"adapter{index}", "many"))
    for index in range(4):
        queue.push(_sequence(f"one{index}", "only", "one"))
    order = [_serve(queue, 10)[:3] for _ in range(8)]
    assert order == ["man", "one"] * 4


def test_a_thousand_waiting_requests_delay_another_tenants_by_one_turn() -> None:
    queue = FairQueue()
    for index in range(1000):
        queue.push(_sequence(f"flood{index}", f"adapter{index % 50}", "flood"))
    for _ in range(100):
        _serve(queue, 10)
    queue.push(_sequence("single", None, "other"))
    assert "single" in [_serve(queue, 10) for _ in range(2)]
    assert len(queue) == 1001 - 102


def test_weights_are_shares_from_when_they_are_set() -> None:
    queue = FairQueue()
    for tenant in ("x", "y"):
        for index in range(40):
            queue.push(_sequence(f"{tenant}{index}", None, tenant))
    assert sorted(_serve(queue, 10)[0] for _ in range(8)) == ["x"] * 4 + ["y"] * 4
    queue.set_weights({"x": 3.0, "absent": 9})
    assert (queue.weight("x"), queue.weight("y")) == (3, 1)
    served = [_serve(queue, 10)[0] for _ in range(24)]
    assert served.count("x") == 18
    queue.set_weights({})
    assert abs([_serve(queue, 10)[0] for _ in range(12)].count("x") - 6) <= 1


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_is_a_positive_number(weight: float) -> None:
    with pytest.raises(ValueError, match=r"the weight of tenant 'x' is .*; it must be a positive number"):
        FairQueue().set_weights({"x": weight})


def test_a_small_demand_earns_no_credit_for_a_flood() -> None:
    """`slow` runs one long request beside thousands of tokens of `busy`, and then asks for much."""
    queue = FairQueue()
    queue.push(_sequence("long", None, "slow"))
    _serve(queue, 1)
    for index in range(200):
        queue.push(_sequence(f"busy{index}", None, "busy"))
    for _ in range(100):
        _serve(queue, 100)
    for index in range(50):
        queue.push(_sequence(f"slow{index}", None, "slow"))
    served = [_serve(queue, 100)[:4] for _ in range(20)]
    assert served.count("slow") == 10


def test_turns_that_are_passed_over_do_not_come_again_and_those_taken_go_on() -> None:
    queue = FairQueue()
    for name in ("a1", "a2", "b1", "c1", "c2"):
        queue.push(_sequence(name, name[0]))
    seen = []
    for head in queue.heads():
        seen.append(head.request.request_id)
        if head.turn[1] != "b":
            queue.take(head)
            queue.charge(head.turn, 5)
    assert seen == ["a1", "b1", "c1", "a2", "c2"]
    assert _heads(queue) == ["b1"]


def test_a_failed_head_may_leave_while_the_others_are_looked_at() -> None:
    queue = FairQueue()
    for name in ("a1", "a2", "b1"):
        queue.push(_sequence(name, name[0], name[0]))
    seen = []
    for head in queue.heads():
        seen.append(head.request.request_id)
        queue.take(head)
        queue.leave(head)
    assert seen == ["a1", "a2", "b1"]
    assert queue.tenants == ()
    assert len(queue) == 0


def test_who_waits_and_who_is_live() -> None:
    queue = FairQueue()
    sequences = [_sequence(str(index), adapter, "t") for index, adapter in enumerate(["a", "b", None])]
    for sequence in sequences:
        queue.push(sequence)
    queue.push(_sequence("other", "b", "u"))
    queue.take(sequences[0])
    assert queue.adapters == {"a", "b", None}
    assert queue.waiting_adapters == {"b", None}
    assert queue.waits_for("b")
    assert not queue.waits_for("a")
    assert queue.adapters_of("t") == ("a", "b", None)
    assert queue.tenant_stats() == {"t": TenantStats(1, 2), "u": TenantStats(0, 1)}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("ab"), st.integers(1, 40)), max_size=60),
    st.integers(1, 9),
)
def test_two_that_wait_all_the_time_are_served_alike(noise: list[tuple[str, str, int]], weight: int) -> None:
    """The bound of the paper: the difference is at most that of two requests, whatever comes beside them."""
    queue = FairQueue()
    queue.set_weights({"q": weight})
    for index in range(100):
        queue.push(_sequence(f"p{index}", None, "p"))
        queue.push(_sequence(f"q{index}", None, "q"))
    got = {"p": 0.0, "q": 0.0}
    for tenant, adapter, tokens in noise:
        queue.push(_sequence("noise", adapter, tenant))
        for _ in range(2):
            head = next(queue.heads())
            _serve(queue, tokens)
            if head.turn[0] in got:
                got[head.turn[0]] += tokens / queue.weight(head.turn[0])
        assert abs(got["p"] - got["q"]) <= 40


def test_absent_turns_are_forgotten_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "_REMEMBERED", 3)
    queue = FairQueue()
    stays = _sequence("stays", "stays", "stays")
    queue.push(stays)
    for i in range(20):
        for sequence in (_sequence(str(i), str(i), "stays"), _sequence(str(i), None, str(i))):
            queue.push(sequence)
            queue.charge(sequence.turn, 1)
            queue.take(sequence)
            queue.leave(sequence)
        assert len(queue._counters) <= 5
        assert len(queue._tenants["stays"].adapters) <= 5
    assert _heads(queue) == ["stays"]
