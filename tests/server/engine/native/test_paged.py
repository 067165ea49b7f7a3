"""The native kernel equals dense attention in float64 for all shapes; no row depends on its neighbours."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from server.engine.attention import AttentionPlan, attention_plan, paged_attention
from server.engine.native.paged import NativePlan, available
from tests.attend import CPU, Batch, Layer, Shape

pytestmark = pytest.mark.skipif(not available(CPU, torch.float32), reason="no compiler")

# around the kernel's tiles of 64 and splits of 256 keys; then chunks that begin and end inside them
LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 300, 511, 512, 513, 700]
CHUNKS = [(5, 5), (70, 9), (64, 64), (257, 2), (300, 100), (520, 16), (650, 260)]
MIXED = [*((length, 1) for length in LENGTHS), *CHUNKS]
OPTIONS = {
    "plain": Shape(),
    "window": Shape(window=37),
    "wide window": Shape(window=300),
    "softcap": Shape(softcap=2.0),
    "sinks": Shape(sinks=True),
    "all": Shape(window=130, softcap=5.0, sinks=True, scale=0.3),
}


def _shape(option: str, group: int, head_dim: int, value_dim: int) -> Shape:
    sizes = Shape(2 * group, 2, head_dim, value_dim)
    asked = OPTIONS[option]
    return replace(sizes, window=asked.window, softcap=asked.softcap, sinks=asked.sinks, scale=asked.scale)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (24, 24), (64, 64), (80, 80), (24, 40)])
@pytest.mark.parametrize("group", [1, 3, 7])
def test_equals_dense_attention(option: str, group: int, head_dim: int, value_dim: int) -> None:
    batch = Batch(_shape(option, group, head_dim, value_dim), MIXED, block_size=16)
    batch.fill(stale=math.nan)
    batch.check(NativePlan, atol=4e-6, rtol=2e-5)


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_blocks_may_have_any_size(block_size: int) -> None:
    batch = Batch(_shape("window", 3, 16, 16), MIXED, block_size=block_size)
    batch.fill(stale=math.nan)
    batch.check(NativePlan)


@pytest.mark.parametrize("heads", [200, 400])
def test_many_heads_may_share_one(heads: int) -> None:
    batch = Batch(Shape(heads, 1, 8, 8), [(300, 1), (40, 3)])
    batch.fill(stale=math.nan)
    batch.check(NativePlan)


@pytest.mark.parametrize("option", OPTIONS)
def test_bfloat16_rounds_only_what_goes_in_and_out(option: str) -> None:
    batch = Batch(_shape(option, 3, 64, 40), MIXED, dtype=torch.bfloat16)
    batch.fill(stale=math.nan)
    for got, expected in zip(batch.paged(NativePlan), batch.dense(), strict=True):
        assert got.dtype == torch.bfloat16
        error = (got.double() - expected).abs()
        assert bool((error <= expected.abs() * 2**-8 + 1e-6).all())  # half a unit in the last place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_sequence_alone_is_the_same_bit_for_bit(option: str, dtype: torch.dtype) -> None:
    batch = Batch(_shape(option, 3, 24, 24), MIXED, dtype=dtype)
    batch.fill()
    for index, got in enumerate(batch.paged(NativePlan)):
        assert torch.equal(got, batch.alone(index).paged(NativePlan)[0])


@pytest.mark.parametrize("option", OPTIONS)
def test_any_chunks_give_the_same_bit_for_bit(option: str) -> None:
    whole = Batch(_shape(option, 7, 16, 16), [(400, 400)])
    expected = whole.paged(NativePlan)[0]
    edges = [0, *sorted(random.Random(0).sample(range(1, 400), 12)), 399, 400]
    for start, stop in itertools.pairwise(edges):
        part = Batch(whole.shape, [(stop, stop - start)])
        part.q = [whole.q[0][start:stop]]
        part.k, part.v, part.sinks = [whole.k[0][:stop]], [whole.v[0][:stop]], whole.sinks
        part.fill(stale=math.nan)
        assert torch.equal(part.paged(NativePlan)[0], expected[start:stop])


def test_threads_do_not_matter() -> None:
    """With one they take whole sequences, with several the splits of long ones."""
    batch = Batch(_shape("all", 3, 64, 64), [(5, 1), (700, 1), (600, 20)])
    batch.fill()
    threads = torch.get_num_threads()
    expected = batch.paged(NativePlan)
    try:
        for count in (2, 5):
            torch.set_num_threads(count)
            for got, once in zip(batch.paged(NativePlan), expected, strict=True):
                assert torch.equal(got, once)
    finally:
        torch.set_num_threads(threads)


def test_tensors_come_in_any_strides() -> None:
    batch = Batch(_shape("plain", 3, 24, 24), [(9, 4)])
    batch.fill()
    expected = batch.paged(NativePlan)[0]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with attention_plan(NativePlan(batch.cache, batch.layout())):
            return paged_attention(Layer(), query, key, value, None)[0][0]

    rows = [t.transpose(0, 1)[None] for t in (batch.q[0], batch.k[0][-4:], batch.v[0][-4:])]
    assert torch.equal(attend(*(t.contiguous() for t in rows)), expected)
    fused = torch.cat(rows, 1).transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attend(fused[:, :6], fused[:, 6:8], fused[:, 8:]), expected)
    columns = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in rows]
    assert columns[0].stride(3) != 1
    assert torch.equal(attend(*columns), expected)


def test_extreme_scores_do_not_overflow() -> None:
    for scale in (1e4, -1e4):
        batch = Batch(Shape(scale=scale, head_dim=16, value_dim=16), [(300, 1), (300, 40)])
        batch.fill()
        batch.check(NativePlan, atol=1e-2)
        assert all(out.isfinite().all() for out in batch.paged(NativePlan))


@pytest.mark.parametrize("wrong", ["tokens", "heads", "dtype", "value"])
def test_refuses_what_does_not_fit(wrong: str) -> None:
    batch = Batch(Shape(4, 2), [(6, 3)])
    batch.fill()
    query, key, value = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8)
    if wrong == "tokens":
        query, key, value = query[:, :, 1:], key[:, :, 1:], value[:, :, 1:]
    elif wrong == "heads":
        query = query[:, 1:]
    elif wrong == "dtype":
        key = key.double()
    else:
        value = value[..., 1:]
    plan: AttentionPlan = NativePlan(batch.cache, batch.layout())
    with attention_plan(plan), pytest.raises(ValueError, match="do not fit 3 tokens"):
        paged_attention(Layer(), query, key, value, None)


def test_refuses_blocks_outside_the_cache() -> None:
    batch = Batch(Shape(), [(6, 3)])
    batch.blocks[0][1] = batch.cache.slots // batch.block_size
    with pytest.raises(ValueError, match="not among the cache's"):
        NativePlan(batch.cache, batch.layout())
