"""Batches of sequences over scattered KV blocks, and dense attention in float64 to compare with."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from server.engine.attention import AttentionPlan, KVCache, StepLayout, attention_plan, paged_attention

CPU = torch.device("cpu")


@dataclass(frozen=True)
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


def dense(q: Tensor, k: Tensor, v: Tensor, shape: Shape, sinks: Tensor | None) -> Tensor:
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
    """Sequences of random numbers with some last tokens to compute now, in random blocks."""

    def __init__(
        self,
        shape: Shape,
        parts: Sequence[tuple[int, int]],
        seed: int = 0,
        *,
        block_size: int = 4,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        """`parts`: for each sequence its length and how many of its last tokens are computed now.

        `device`: where the cache is, and where attention is computed.
        """
        self.device = device
        self.shape, self.parts, self.block_size = shape, list(parts), block_size
        generator = torch.Generator().manual_seed(seed)

        def rand(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator).to(dtype)

        needed = [-(-length // block_size) for length, _ in parts]
        free = list(range(1, sum(needed) + 3))  # block 0 is a stranger's, as are some more
        self.cache = KVCache((len(free) + 1) * block_size, dtype, device)
        random.Random(seed).shuffle(free)
        self.blocks = [[free.pop() for _ in range(count)] for count in needed]
        self.q = [rand(new, shape.heads, shape.head_dim) for _, new in parts]
        self.k = [rand(length, shape.kv_heads, shape.head_dim) for length, _ in parts]
        self.v = [rand(length, shape.kv_heads, shape.value_dim) for length, _ in parts]
        self.sinks = rand(shape.heads) if shape.sinks else None

    def slots(self, sequence: int) -> list[int]:
        size, (length, _) = self.block_size, self.parts[sequence]
        return [block * size + i for block in self.blocks[sequence] for i in range(size)][:length]

    def stores(self) -> tuple[Tensor, Tensor]:
        return self.cache.layer(0, _heads_first(self.k[0]), _heads_first(self.v[0]))

    def fill(self, stale: float = 0.0) -> None:
        """Put what was computed before into the cache; every other slot holds `stale`."""
        keys, values = self.stores()
        keys.fill_(stale)
        values.fill_(stale)
        for index, (length, new) in enumerate(self.parts):
            old = self.slots(index)[: length - new]
            keys[old] = self.k[index][: len(old)].to(self.device)
            values[old] = self.v[index][: len(old)].to(self.device)

    def layout(self) -> StepLayout:
        lengths, counts = zip(*self.parts, strict=True)
        return StepLayout.of(self.block_size, self.blocks, lengths, counts)

    def paged(self, plan_type: type[AttentionPlan]) -> list[Tensor]:
        """What each sequence's new tokens give, `(tokens, heads, value_dim)`."""
        counts = [new for _, new in self.parts]
        key = torch.cat([k[-new:] for k, new in zip(self.k, counts, strict=True)])
        value = torch.cat([v[-new:] for v, new in zip(self.v, counts, strict=True)])
        with attention_plan(plan_type(self.cache, self.layout())):
            out, weights = paged_attention(
                Layer(),
                _heads_first(torch.cat(self.q).to(self.device)),
                _heads_first(key.to(self.device)),
                _heads_first(value.to(self.device)),
                None,
                scaling=self.shape.scale,
                sliding_window=self.shape.window,
                softcap=self.shape.softcap,
                s_aux=None if self.sinks is None else self.sinks.to(self.device),
            )
        assert weights is None
        assert out.shape == (1, sum(counts), self.shape.heads, self.shape.value_dim)
        return list(torch.split(out[0].cpu(), counts))

    def dense(self) -> list[Tensor]:
        rows = zip(self.q, self.k, self.v, strict=True)
        return [dense(q, k, v, self.shape, self.sinks) for q, k, v in rows]

    def alone(self, sequence: int) -> Batch:
        """The same sequence in a step and a cache of its own, in other blocks."""
        other = Batch(
            self.shape,
            [self.parts[sequence]],
            99,
            block_size=self.block_size,
            dtype=self.q[0].dtype,
            device=self.device,
        )
        other.q, other.k, other.v = [self.q[sequence]], [self.k[sequence]], [self.v[sequence]]
        other.sinks = self.sinks
        other.fill()
        return other

    def check(self, plan_type: type[AttentionPlan], *, atol: float = 2e-6, rtol: float = 1e-5) -> None:
        for got, expected in zip(self.paged(plan_type), self.dense(), strict=True):
            assert torch.allclose(got.double(), expected, atol=atol, rtol=rtol)


def _heads_first(rows: Tensor) -> Tensor:
    """`(tokens, heads, dim)` as models give it: `(1, heads, tokens, dim)`, a view."""
    return rows.transpose(0, 1)[None]
