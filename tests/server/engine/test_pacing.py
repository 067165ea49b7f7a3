"""Prefill rides along with decoding only as far as it keeps a step short."""

from __future__ import annotations

from server.engine.pacing import Pacer


def test_without_decoding_everything_may_be_prefill() -> None:
    assert Pacer(512).prefill_budget(0) == 512


def test_before_anything_was_measured_it_is_careful() -> None:
    assert Pacer(512).prefill_budget(1) == 64
    assert Pacer(32).prefill_budget(1) == 32


def test_prefill_may_take_as_long_as_decoding() -> None:
    pacer = Pacer(512)
    pacer.record(8, 0, 0.1)
    pacer.record(0, 200, 0.2)  # a millisecond for each token
    assert pacer.prefill_budget(8) == 100


def test_mixed_steps_teach_the_cost_of_their_prefill() -> None:
    pacer = Pacer(512)
    pacer.record(8, 0, 0.1)
    pacer.record(8, 50, 0.2)  # two milliseconds for each
    assert pacer.prefill_budget(8) == 50


def test_a_lucky_mixed_step_teaches_nothing() -> None:
    pacer = Pacer(512)
    pacer.record(8, 0, 0.1)
    pacer.record(0, 100, 0.1)
    pacer.record(8, 50, 0.05)
    assert pacer.prefill_budget(8) == 100


def test_the_budget_stays_within_its_bounds() -> None:
    slow, fast = Pacer(512), Pacer(512)
    slow.record(1, 0, 0.001)
    slow.record(0, 1, 1.0)
    fast.record(1, 0, 10.0)
    fast.record(0, 1000, 0.001)
    assert slow.prefill_budget(1) == 16
    assert fast.prefill_budget(1) == 512


def test_it_follows_slowly() -> None:
    pacer = Pacer(1000)
    pacer.record(0, 100, 0.1)
    pacer.record(4, 0, 0.1)
    pacer.record(4, 0, 0.6)  # one outlier moves the mean by a fifth
    assert pacer.prefill_budget(4) == 200


def test_many_prompts_beside_few_answers_may_take_longer() -> None:
    pacer = Pacer(1000)
    pacer.record(8, 0, 0.1)
    pacer.record(0, 100, 0.1)
    assert pacer.prefill_budget(8, 1) == pacer.prefill_budget(8, 8) == 100
    assert pacer.prefill_budget(1, 7) == 700
    assert pacer.prefill_budget(1, 70) == 1000  # the most that one step may hold
