"""Attention in plain torch operations gathers no more than it must, once for each window."""

from __future__ import annotations

import torch

from server.engine.attention import KVCache, StepLayout
from server.engine.gathered import GatheredPlan
from tests.attend import CPU


def _plan(length: int, new: int) -> GatheredPlan:
    layout = StepLayout.of(1, [list(range(length))], [length], [new])
    return GatheredPlan(KVCache(128, torch.float32, CPU), layout)


def test_gathers_are_made_once_for_each_window() -> None:
    plan = _plan(20, 1)
    assert plan.gathers(4, CPU) is plan.gathers(4, CPU)
    assert plan.gathers(None, CPU) is plan.gathers(50, CPU)  # nothing is longer than that window
    assert plan.gathers(4, CPU) is not plan.gathers(None, CPU)


def test_a_window_gathers_no_more_than_it_sees() -> None:
    assert _plan(100, 1).gathers(8, CPU)[0].slots.tolist() == [list(range(92, 100))]
    assert _plan(100, 5).gathers(8, CPU)[0].slots.tolist() == [list(range(88, 100))]


def test_padding_costs_at_most_as_much_as_the_keys() -> None:
    lengths = [3, 100, 90, 2, 70]
    layout = StepLayout.of(128, [[i] for i in range(5)], lengths, [1] * 5)
    gathers = GatheredPlan(KVCache(640, torch.float32, CPU), layout).gathers(None, CPU)
    assert sorted(g.slots.shape for g in gathers) == [(2, 3), (3, 100)]
