"""Paged attention over scattered blocks equals dense attention in float64, by every implementation."""

from __future__ import annotations

import math
import random

import pytest
import torch
from transformers import AttentionInterface

from server.engine import attention
from server.engine.attention import AttentionPlan, KVCache, StepLayout, paged_attention
from server.engine.gathered import GatheredPlan
from server.engine.native.paged import NativePlan, available
from tests.attend import CPU, Batch, Layer, Shape

PLANS = [GatheredPlan, NativePlan] if available(CPU, torch.float32) else [GatheredPlan]

# length, tokens computed now: decode rows of many lengths, then whole prompts and later chunks
MIXED = [(1, 1), (5, 1), (13, 1), (14, 1), (40, 1), (7, 7), (23, 6), (30, 30), (2, 2)]

SHAPES = [
    Shape(),
    Shape(kv_heads=2),
    Shape(kv_heads=1, head_dim=16, value_dim=16),
    Shape(window=1),
    Shape(kv_heads=2, window=6),
    Shape(window=39),
    Shape(window=1000),
    Shape(kv_heads=2, softcap=1.5),
    Shape(kv_heads=2, sinks=True),
    Shape(kv_heads=2, window=6, softcap=2.0, sinks=True, scale=0.4),
    Shape(scale=0.05),
    Shape(kv_heads=2, value_dim=12),
]

pytestmark = pytest.mark.parametrize("plan_type", PLANS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_dense_attention(shape: Shape, seed: int, plan_type: type[AttentionPlan]) -> None:
    parts = list(MIXED)
    random.Random(seed).shuffle(parts)
    batch = Batch(shape, sorted(parts, key=lambda part: part[1] > 1), seed)
    batch.fill()
    batch.check(plan_type)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_other_slots_hold_does_not_matter(shape: Shape, plan_type: type[AttentionPlan]) -> None:
    """Freed blocks may hold infinity or NaN of an adapter that diverged: padding must not reach them."""
    batch = Batch(shape, MIXED)
    batch.fill(stale=math.nan)
    batch.check(plan_type)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_diverged_neighbour_harms_only_itself(shape: Shape, plan_type: type[AttentionPlan]) -> None:
    batch = Batch(shape, MIXED)
    for victim in (3, 7):
        batch.k[victim].fill_(math.nan)
        batch.v[victim].fill_(math.inf)
    batch.fill()
    for index, (got, expected) in enumerate(zip(batch.paged(plan_type), batch.dense(), strict=True)):
        if index in (3, 7):
            assert got.isnan().all()
        else:
            assert torch.allclose(got.double(), expected, atol=2e-6, rtol=1e-5)


def test_chunk_by_chunk_is_the_same_as_at_once(plan_type: type[AttentionPlan]) -> None:
    shape = Shape(kv_heads=2, window=6)
    whole = Batch(shape, [(20, 20)], seed=4)
    expected = whole.paged(plan_type)[0]
    got = []
    for start, stop in ((0, 3), (3, 4), (4, 15), (15, 20)):
        part = Batch(shape, [(stop, stop - start)], seed=4)
        part.cache, part.blocks = whole.cache, whole.blocks
        part.q = [whole.q[0][start:stop]]
        part.k, part.v = [whole.k[0][:stop]], [whole.v[0][:stop]]
        got.append(part.paged(plan_type)[0])
    assert torch.allclose(torch.cat(got), expected, atol=1e-6)


def test_the_cache_counts_what_a_token_takes(plan_type: type[AttentionPlan]) -> None:
    batch = Batch(Shape(kv_heads=2, value_dim=12), [(3, 3)])
    assert batch.cache.slot_bytes == 0
    batch.paged(plan_type)
    batch.cache.layer(1, torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 6))
    assert batch.cache.slot_bytes == 2 * (8 + 12) * 4 + 2 * (4 + 6) * 4


def test_a_plan_ends_with_its_pass(plan_type: type[AttentionPlan]) -> None:
    batch = Batch(Shape(), [(3, 3)])
    batch.paged(plan_type)
    with pytest.raises(LookupError):
        paged_attention(Layer(), *(torch.zeros(1, 4, 3, 8),) * 3, None)


def test_a_plan_notes_its_calls(plan_type: type[AttentionPlan]) -> None:
    batch = Batch(Shape(window=2), [(3, 3)])
    plan = plan_type(batch.cache, batch.layout())
    with attention.attention_plan(plan):
        for window in (2, None):
            paged_attention(Layer(), *(torch.zeros(1, 4, 3, 8),) * 3, None, sliding_window=window)
    assert plan.calls == [(0, 2), (0, None)]


def test_registers_with_transformers(plan_type: type[AttentionPlan]) -> None:
    attention.register()
    assert AttentionInterface()[attention.NAME] is paged_attention
    assert issubclass(plan_type, AttentionPlan)


def test_a_layout_tells_rows_and_slots(plan_type: type[AttentionPlan]) -> None:
    layout = StepLayout.of(4, [[5, 2, 9], [7], [1, 3]], [6, 2, 8], [1, 1, 3])
    assert layout.query_starts.tolist() == [0, 1, 2, 5]
    assert layout.positions.tolist() == [5, 1, 5, 6, 7]
    assert layout.slots.tolist() == [2 * 4 + 1, 7 * 4 + 1, 3 * 4 + 1, 3 * 4 + 2, 3 * 4 + 3]
    assert layout.block_tables.tolist() == [[5, 2, 9], [7, 0, 0], [1, 3, 0]]
    assert (layout.tokens, layout.decodes) == (5, 2)
    assert StepLayout.of(4, [[1]], [2], [1]).decodes == 1
    plan = plan_type(KVCache(40, torch.float32, CPU), layout)
    assert plan.layout is layout
