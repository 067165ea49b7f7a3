"""Paged attention against softmax(q k) v written out per sequence, query and head in float64."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.cuda import paged
from server.engine.cuda.paged import AttentionOptions, PagedStep

NAN = math.nan
SPLITS = paged.SPLITS
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


@dataclass(frozen=True)
class Form:
    """Shapes of a layer, and what it asks for."""

    heads: int = 6
    kv_heads: int = 2
    k_dim: int = 16
    v_dim: int = 16
    block_size: int = 4
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    dtype: torch.dtype = torch.float32


@dataclass
class Case:
    """Sequences of `(length, queries)` over a cache that is NaN wherever no sequence has a token."""

    form: Form
    sequences: list[tuple[int, int]]
    device: torch.device
    tile_queries: int = 4
    seed: int = 0
    pad_tiles: int = 0
    tokens: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Draws every sequence from a seed of its own, so that its tokens are the same in any company."""
        form, chance = self.form, random.Random(self.seed)
        tables: list[list[int]] = []
        total = sum(-(-length // form.block_size) for length, _ in self.sequences) + 3
        free = list(range(total))
        chance.shuffle(free)
        self.keys = torch.full((total, form.block_size, form.kv_heads, form.k_dim), NAN, dtype=form.dtype)
        self.values = torch.full((total, form.block_size, form.kv_heads, form.v_dim), NAN, dtype=form.dtype)
        queries, slots = [], []
        for length, asks in self.sequences:
            generator = torch.Generator().manual_seed(1000 * length + asks)
            key = torch.randn(length, form.kv_heads, form.k_dim, generator=generator).to(form.dtype)
            value = torch.randn(length, form.kv_heads, form.v_dim, generator=generator).to(form.dtype)
            query = torch.randn(max(asks, 1), form.heads, form.k_dim, generator=generator).to(form.dtype)
            tables.append([free.pop() for _ in range(-(-length // form.block_size))])
            for token in range(length):
                block, offset = tables[-1][token // form.block_size], token % form.block_size
                # What no query sees any more may be given back and be anything.
                if form.window is None or token > length - max(asks, 1) - form.window:
                    self.keys[block, offset], self.values[block, offset] = key[token], value[token]
                if token >= length - asks:
                    slots.append(block * form.block_size + offset)
            slots += [-1] * (length == 0)
            queries.append(query)
            self.tokens.append((key, value))
        self.query = torch.cat(queries).to(self.device)
        self.keys, self.values = self.keys.to(self.device), self.values.to(self.device)
        width = max(max(map(len, tables)), 1) + 2
        lies = [table + [2**31 - 1] * (width - len(table)) for table in tables]  # beyond its end: never read
        rows = [max(asks, 1) for _, asks in self.sequences]
        decodes = next((i for i, asks in enumerate(rows) if asks > 1), len(rows))
        assert all(asks > 1 for asks in rows[decodes:])
        tiles = paged.prefill_tiles(rows[decodes:], decodes, self.tile_queries, self.pad_tiles)
        starts = [sum(rows[:i]) for i in range(len(rows) + 1)]
        self.step = PagedStep(
            slots=torch.tensor(slots, device=self.device),
            block_tables=torch.tensor(lies, dtype=torch.int32, device=self.device),
            kv_lengths=torch.tensor([n for n, _ in self.sequences], dtype=torch.int32, device=self.device),
            query_starts=torch.tensor(starts, dtype=torch.int32, device=self.device),
            tiles=tiles.to(self.device),
            tile_queries=self.tile_queries,
            decodes=decodes,
        )
        sinks = torch.linspace(-1, 2, form.heads, device=self.device).to(form.dtype) if form.sinks else None
        self.options = AttentionOptions(0.3, form.window, form.softcap, sinks)

    def run(self) -> Tensor:
        return paged.paged_attention(self.step, self.query, self.keys, self.values, self.options).cpu()

    def expected(self) -> Tensor:
        """`(rows, heads, v_dim)` float64."""
        rows = []
        for index, (length, asks) in enumerate(self.sequences):
            start = int(self.step.query_starts[index])
            for ask in range(max(asks, 1)):
                query = self.query[start + ask].cpu().double()
                rows.append(self._row(query, *self.tokens[index], length - max(asks, 1) + ask))
        return torch.stack(rows)

    def _row(self, query: Tensor, key: Tensor, value: Tensor, position: int) -> Tensor:
        form = self.form
        out = torch.zeros(form.heads, form.v_dim, dtype=torch.float64)
        first = 0 if form.window is None else max(0, position - form.window + 1)
        for head in range(form.heads if position >= 0 else 0):
            own = head // (form.heads // form.kv_heads)
            scores = key[first : position + 1, own].double() @ query[head] * self.options.scale
            if form.softcap is not None:
                scores = form.softcap * torch.tanh(scores / form.softcap)
            if self.options.sinks is not None:
                scores = torch.cat([scores, self.options.sinks[head].cpu().double()[None]])
            weights = scores.softmax(0)[: position + 1 - first]
            out[head] = weights @ value[first : position + 1, own].double()
        return out

    def check(self) -> Tensor:
        found = self.run()
        torch.testing.assert_close(
            found.double(), self.expected(), atol=TOLERANCE[self.form.dtype], rtol=TOLERANCE[self.form.dtype]
        )
        return found


@pytest.fixture(autouse=True)
def few_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after another, the empty ones too."""
    monkeypatch.setattr(paged, "SPLITS", 2)


MIXED = [(1, 1), (64, 1), (131, 1), (0, 0), (2, 2), (21, 5), (70, 7)]

FORMS = {
    "mha": Form(heads=2, kv_heads=2),
    "gqa 3": Form(),
    "gqa 7": Form(heads=14, kv_heads=2, block_size=16),
    "mqa 20": Form(heads=20, kv_heads=1),
    "block of 1": Form(block_size=1),
    "block of 5": Form(block_size=5),
    "block of 256": Form(block_size=256),
    "head of 24": Form(k_dim=24, v_dim=24),
    "head of 80": Form(k_dim=80, v_dim=80, block_size=16),
    "narrow values": Form(k_dim=24, v_dim=16),
    "wide values": Form(k_dim=16, v_dim=40),
    "head of 5": Form(k_dim=5, v_dim=3),
    "window 1": Form(window=1),
    "window 7": Form(window=7),
    "window 64": Form(window=64, block_size=16),
    "soft cap": Form(softcap=1.5),
    "sinks": Form(sinks=True),
    "all": Form(heads=14, k_dim=24, v_dim=16, window=19, softcap=2.0, sinks=True),
    "half, all": Form(heads=14, k_dim=64, v_dim=64, window=30, softcap=2.0, sinks=True, dtype=torch.float16),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_mixed_step_is_attention(name: str, gpu: torch.device) -> None:
    """Decode rows, a padding row and chunks, of lengths on both sides of blocks, tiles and splits."""
    found = Case(FORMS[name], MIXED, gpu, tile_queries=4, pad_tiles=6).check()
    assert (found[3] == 0).all()


@pytest.mark.parametrize("length", [127, 128, 129, 2048, 2049])
def test_decode_at_the_ends_of_splits(
    length: int, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "SPLITS", SPLITS)
    Case(Form(heads=1, kv_heads=1), [(length, 1)], gpu).check()


def test_a_window_decodes_from_a_long_sequence(gpu: torch.device) -> None:
    Case(Form(heads=2, kv_heads=1, window=200), [(531, 1), (200, 1), (199, 1)], gpu).check()


@pytest.mark.parametrize("queries", [1, 2, 5, 64])
def test_prefill_with_tiles_of_any_size(queries: int, gpu: torch.device) -> None:
    Case(Form(window=6, sinks=True), [(13, 13), (30, 4)], gpu, tile_queries=queries).check()


def test_a_prompt_in_chunks_is_the_prompt_at_once(gpu: torch.device) -> None:
    """The last chunk's rows, wherever it began, to rounding in the interpreter's products."""
    form = Form(window=40)
    whole = Case(form, [(90, 90)], gpu, tile_queries=16)
    for queries in (3, 50):
        part = Case(form, [(90, queries)], gpu, tile_queries=16)
        part.keys, part.values = whole.keys, whole.values
        part.step = replace(part.step, block_tables=whole.step.block_tables)
        part.query = whole.query[-queries:].contiguous()
        torch.testing.assert_close(part.run(), whole.run()[-queries:], atol=1e-6, rtol=1e-6)


def test_neighbours_change_nothing(gpu: torch.device) -> None:
    """Bit for bit, also when the block table is wider and blocks lie elsewhere."""
    form = Form(window=100, softcap=3.0, sinks=True)
    decode, chunk = (150, 1), (77, 6)
    alone = torch.cat([Case(form, [decode], gpu).run(), Case(form, [chunk], gpu).run()])
    company = Case(form, [(300, 1), decode, (5, 1), (40, 40), chunk, (9, 3)], gpu, seed=5).run()
    assert torch.equal(torch.cat([company[1:2], company[43:49]]), alone)


def test_rows_of_no_sequence_are_left_alone(gpu: torch.device) -> None:
    case = Case(Form(), [(3, 1), (6, 4)], gpu)
    out = torch.full((9, 6, 16), 7.0, device=gpu)
    query = torch.cat([case.query, torch.full((4, 6, 16), NAN, device=gpu)])
    paged.paged_decode(case.step, query, case.keys, case.values, out, case.options)
    assert (out[1:] == 7).all()
    assert torch.isfinite(out[0]).all()
    paged.paged_prefill(case.step, query, case.keys, case.values, out, case.options)
    assert (out[5:] == 7).all()


def test_a_query_seen_through_a_transpose(gpu: torch.device) -> None:
    """As the model gives it: `(heads, tokens, dim)` in memory."""
    case = Case(Form(), [(20, 1), (9, 5)], gpu)
    expected = case.run()
    case.query = case.query.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(case.run(), expected)
    case.query = case.query.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(case.run(), expected)


@pytest.mark.parametrize(("k_dim", "v_dim", "kv_heads"), [(16, 16, 2), (24, 5, 3), (576, 512, 9)])
def test_write_kv_fills_the_slots_and_nothing_else(
    k_dim: int, v_dim: int, kv_heads: int, gpu: torch.device
) -> None:
    key, value = (torch.randn(kv_heads, 5, dim, device=gpu).transpose(0, 1) for dim in (k_dim, v_dim))
    keys, values = (torch.full((4, 3, kv_heads, dim), NAN, device=gpu) for dim in (k_dim, v_dim))
    slots = [7, -1, 0, 11, 4]
    step = replace(Case(Form(), [(1, 1)], gpu).step, slots=torch.tensor(slots, device=gpu))
    paged.write_kv(step, key, value, keys, values)
    for new, cache in ((key, keys), (value, values)):
        flat = cache.view(12, kv_heads, -1)
        for row, slot in enumerate(slots):
            assert slot < 0 or torch.equal(flat[slot], new[row])
        others = [slot for slot in range(12) if slot not in slots]
        assert flat[others].isnan().all()


def test_write_kv_then_attention(gpu: torch.device) -> None:
    """The step's own tokens are written first, to a cache that lacks them."""
    case = Case(Form(dtype=torch.float16, block_size=16), [(20, 1), (0, 0), (9, 5)], gpu)
    expected = case.run()
    flat_keys, flat_values = case.keys.view(-1, 2, 16), case.values.view(-1, 2, 16)
    kept = case.step.slots.clamp(min=0)
    key, value = flat_keys[kept], flat_values[kept]
    written = case.step.slots[case.step.slots >= 0]
    flat_keys[written], flat_values[written] = NAN, NAN
    assert not torch.equal(case.run(), expected)
    paged.write_kv(case.step, key.float(), value.float(), case.keys, case.values)
    assert torch.equal(case.run(), expected)


def test_tiles_cover_every_query_once() -> None:
    tiles = paged.prefill_tiles([5, 1, 4], 2, 2, pad_to=8).tolist()
    assert sorted(tiles[:6]) == [[2, 0], [2, 2], [2, 4], [3, 0], [4, 0], [4, 2]]
    assert tiles[6:] == [[-1, 0]] * 2
    assert paged.prefill_tiles([], 3, 2).shape == (0, 2)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "queries"),
    [(32, 32, 128, 128), (28, 4, 128, 18), (8, 1, 256, 8), (999, 1, 64, 1)],
)
def test_tiles_are_filled(heads: int, kv_heads: int, dim: int, queries: int) -> None:
    assert paged.tile_queries(heads, kv_heads, dim, torch.bfloat16) == queries


def test_what_does_not_fit_is_refused(gpu: torch.device) -> None:
    case = Case(Form(), MIXED, gpu)
    wrong: list[dict[str, Any]] = [
        {"query": case.query[:, :5]},
        {"query": case.query[..., :8]},
        {"keys": case.keys.transpose(0, 1)},
    ]
    for change in wrong:
        arguments = {"query": case.query, "keys": case.keys, "values": case.values, **change}
        with pytest.raises(ValueError, match=r"fit|contiguous"):
            paged.paged_attention(case.step, **arguments, options=case.options)
