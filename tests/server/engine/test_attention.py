"""Paged attention over scattered blocks equals dense attention in float64, sequence by sequence."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from server.engine import attention
from server.engine.attention import AttentionPlan, KVCache, Span, attention_plan, paged_attention

BLOCK = 4
SLOTS = 400


@dataclass
class Shape:
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 8
    value_dim: int = 8
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    scale: float | None = None


class Layer(nn.Module):
    layer_idx = 0


def _dense(q: Tensor, k: Tensor, v: Tensor, shape: Shape, sinks: Tensor | None) -> Tensor:
    """The last `len(q)` tokens of one sequence attend to all of it. `(tokens, heads, dim)` each."""
    group = shape.heads // shape.kv_heads
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * (shape.scale or shape.head_dim**-0.5)
    if shape.softcap:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    asks = torch.arange(len(k) - len(q), len(k))[:, None]
    holds = torch.arange(len(k))[None, :]
    seen = holds <= asks
    if shape.window:
        seen &= holds > asks - shape.window
    scores = scores.masked_fill(~seen, -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, len(q), 1)], -1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : len(k)], v)


class Batch:
    """Sequences of random length with random tokens to compute now, in random slots."""

    def __init__(self, shape: Shape, parts: list[tuple[int, int]], seed: int = 0) -> None:
        """`parts`: for each sequence its length and how many of its last tokens are computed now."""
        self.shape = shape
        self.parts = parts
        generator = torch.Generator().manual_seed(seed)

        def rand(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator)

        free = list(range(1, SLOTS // BLOCK))  # block 0 is a stranger's
        random.Random(seed).shuffle(free)
        self.slots = []
        for length, _ in parts:
            blocks = [free.pop() for _ in range(-(-length // BLOCK))]
            self.slots.append(torch.tensor([b * BLOCK + i for b in blocks for i in range(BLOCK)][:length]))
        self.q = [rand(new, shape.heads, shape.head_dim) for _, new in parts]
        self.k = [rand(length, shape.kv_heads, shape.head_dim) for length, _ in parts]
        self.v = [rand(length, shape.kv_heads, shape.value_dim) for length, _ in parts]
        self.sinks = rand(shape.heads) if shape.sinks else None
        self.cache = KVCache(SLOTS, torch.float32, torch.device("cpu"))

    def fill(self, stale: float = 0.0) -> None:
        """Put what was computed before into the cache; every other slot holds `stale`."""
        old = [(s[:-new], k[:-new], v[:-new]) for s, (_, new), k, v in self._each()]
        blank = torch.arange(SLOTS)
        everywhere = torch.full((SLOTS, *self.k[0].shape[1:]), stale)
        values = torch.full((SLOTS, *self.v[0].shape[1:]), stale)
        self.cache.write(0, blank, everywhere, values)
        for slots, key, value in old:
            self.cache.write(0, slots, key, value)

    def _each(self) -> zip[tuple[Tensor, tuple[int, int], Tensor, Tensor]]:
        return zip(self.slots, self.parts, self.k, self.v, strict=True)

    def paged(self) -> list[Tensor]:
        spans, start = [], 0
        for slots, (_, new) in zip(self.slots, self.parts, strict=True):
            spans.append(Span(start, start + new, slots))
            start += new
        write = torch.cat([slots[-new:] for slots, (_, new) in zip(self.slots, self.parts, strict=True)])
        key = torch.cat([k[-new:] for k, (_, new) in zip(self.k, self.parts, strict=True)])
        value = torch.cat([v[-new:] for v, (_, new) in zip(self.v, self.parts, strict=True)])
        shape = self.shape
        with attention_plan(AttentionPlan(self.cache, write, spans)):
            out, weights = paged_attention(
                Layer(),
                torch.cat(self.q).transpose(0, 1)[None],
                key.transpose(0, 1)[None],
                value.transpose(0, 1)[None],
                None,
                scaling=shape.scale,
                sliding_window=shape.window,
                softcap=shape.softcap,
                s_aux=self.sinks,
            )
        assert weights is None
        assert out.shape == (1, start, shape.heads, shape.value_dim)
        return list(torch.split(out[0], [new for _, new in self.parts]))

    def dense(self) -> list[Tensor]:
        rows = zip(self.q, self.k, self.v, strict=True)
        return [_dense(q, k, v, self.shape, self.sinks) for q, k, v in rows]

    def check(self) -> None:
        for got, expected in zip(self.paged(), self.dense(), strict=True):
            assert torch.allclose(got.double(), expected, atol=2e-6, rtol=1e-5)


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_dense_attention(shape: Shape, seed: int) -> None:
    parts = list(MIXED)
    random.Random(seed).shuffle(parts)
    batch = Batch(shape, sorted(parts, key=lambda part: part[1] > 1), seed)
    batch.fill()
    batch.check()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_other_slots_hold_does_not_matter(shape: Shape) -> None:
    """Freed blocks may hold infinity or NaN of an adapter that diverged: padding must not reach them."""
    batch = Batch(shape, MIXED)
    batch.fill(stale=math.nan)
    batch.check()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_diverged_neighbour_harms_only_itself(shape: Shape) -> None:
    batch = Batch(shape, MIXED)
    batch.fill()
    for victim in (3, 7):
        batch.k[victim].fill_(math.nan)
        batch.v[victim].fill_(math.inf)
    batch.fill()
    for index, (got, expected) in enumerate(zip(batch.paged(), batch.dense(), strict=True)):
        if index not in (3, 7):
            assert torch.allclose(got.double(), expected, atol=2e-6, rtol=1e-5)


def test_chunk_by_chunk_is_the_same_as_at_once() -> None:
    shape = Shape(kv_heads=2, window=6)
    whole = Batch(shape, [(20, 20)], seed=4)
    expected = whole.paged()[0]
    got = []
    for start, stop in ((0, 3), (3, 4), (4, 15), (15, 20)):
        part = Batch(shape, [(stop, stop - start)], seed=4)
        part.cache, part.slots = whole.cache, [whole.slots[0][:stop]]
        part.q = [whole.q[0][start:stop]]
        part.k, part.v = [whole.k[0][:stop]], [whole.v[0][:stop]]
        got.append(part.paged()[0])
    assert torch.allclose(torch.cat(got), expected, atol=1e-6)


def test_gathers_are_made_once_for_each_window() -> None:
    slots = torch.arange(20)
    plan = AttentionPlan(KVCache(32, torch.float32, torch.device("cpu")), slots[-1:], [Span(0, 1, slots)])
    assert plan.gathers(4) is plan.gathers(4)
    assert plan.gathers(None) is plan.gathers(50)  # nothing is longer than that window
    assert plan.gathers(4) is not plan.gathers(None)


def test_a_window_gathers_no_more_than_it_sees() -> None:
    slots = torch.arange(100)
    cache = KVCache(128, torch.float32, torch.device("cpu"))
    single = AttentionPlan(cache, slots[-1:], [Span(0, 1, slots)]).gathers(8)
    chunk = AttentionPlan(cache, slots[-5:], [Span(0, 5, slots)]).gathers(8)
    assert single[0].slots.tolist() == [list(range(92, 100))]
    assert chunk[0].slots.tolist() == [list(range(88, 100))]


def test_the_cache_counts_what_a_token_takes() -> None:
    cache = KVCache(8, torch.float16, torch.device("cpu"))
    assert cache.slot_bytes == 0
    for layer in range(3):
        cache.write(layer, torch.tensor([1]), torch.ones(1, 2, 4).half(), torch.ones(1, 2, 6).half())
    assert cache.slot_bytes == 3 * 2 * (4 + 6) * 2


def test_a_plan_ends_with_its_pass() -> None:
    batch = Batch(Shape(), [(3, 3)])
    batch.paged()
    with pytest.raises(LookupError):
        paged_attention(Layer(), *(torch.zeros(1, 4, 3, 8),) * 3, None)


def test_registers_with_transformers() -> None:
    attention.register()
    assert AttentionInterface()[attention.NAME] is paged_attention
