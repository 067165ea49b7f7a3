"""Rows of many adapters through the GPU's kernels, compared with each row's own products in float64."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.base import LinearSpec
from adapters.batch.batched import BatchedLinear, BatchSizes
from adapters.batch.cuda import batch as module
from adapters.batch.cuda.batch import CudaBatch
from adapters.batch.cuda.lora import shrink
from adapters.batch.linear import PlainLinear
from adapters.batch.placed import PlacedAdapter
from adapters.batch.segment import Segment
from adapters.delta import AdapterWeights, ModuleDelta
from adapters.errors import InvalidAdapter
from tests.adapters import terms

GROUPS = [("q", "k"), ("head",)]
SIZES = {"q": (40, 32), "k": (40, 24), "head": (32, 48)}
SPECS = {name: LinearSpec(name, inputs, outputs) for name, (inputs, outputs) in SIZES.items()}


def _random(*sizes: int, seed: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def _weights(digest: str, ranks: dict[str, int]) -> AdapterWeights:
    deltas = {}
    for name, rank in ranks.items():
        inputs, outputs = SIZES[name]
        seed = sum((digest + name).encode())
        a, b = _random(rank, inputs, seed=seed) / 6, _random(outputs, rank, seed=seed + 1)
        deltas[name] = ModuleDelta(a, b, 0.5)
    return AdapterWeights(digest, deltas)


WEIGHTS = {name: _random(outputs, inputs, seed=inputs) / 6 for name, (inputs, outputs) in SIZES.items()}
ADAPTERS = {
    "a": _weights("a", {"q": 2, "k": 3, "head": 1}),
    "b": _weights("b", {"k": 8}),
    "c": _weights("c", {"q": 5, "head": 4}),
}
Runs = Sequence[tuple[str | None, int]]
"""Whose the rows are, segment by segment."""


class Stand:
    """Two layers that share an input, and a head that sees other rows."""

    def __init__(self, device: torch.device, slots: int = 3, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = device, dtype
        self.batch = CudaBatch(GROUPS, SPECS, dtype, device, BatchSizes(slots, 8))
        self.placed = {name: self.placement(weights) for name, weights in ADAPTERS.items()}
        self.layers = {
            name: BatchedLinear(
                name, PlainLinear(self.on(WEIGHTS[name]), None), None, self.batch, index, member, index == 1
            )
            for index, names in enumerate(GROUPS)
            for member, name in enumerate(names)
        }

    def on(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)

    def placement(self, weights: AdapterWeights) -> PlacedAdapter:
        return self.batch.place(weights).to(self.device)

    def begin(self, tokens: Runs, logits: Runs = ()) -> None:
        self.batch.begin(self._segments(tokens), self._segments(logits))

    def _segments(self, runs: Runs) -> list[Segment[PlacedAdapter]]:
        segments: list[Segment[PlacedAdapter]] = []
        for owner, count in runs:
            start = segments[-1].stop if segments else 0
            segments.append(Segment(start, start + count, self.placed[owner] if owner else None))
        return segments

    def check(self, name: str, runs: Runs, x: Tensor, tolerance: float = 1e-5) -> None:
        owners = [owner for owner, count in runs for _ in range(count)]
        got = self.layers[name](x).double().cpu()
        for row, owner in enumerate(owners):
            inputs = x[row].double().cpu()
            expected = WEIGHTS[name].to(self.dtype).double() @ inputs
            delta = ADAPTERS[owner].deltas.get(name) if owner else None
            if delta is not None:
                expected += delta.scale * delta.b.double() @ (delta.a.double() @ inputs)
            assert torch.allclose(got[row], expected, rtol=tolerance, atol=tolerance), (name, row)


DECODE: Runs = [("a", 1), (None, 1), ("c", 1), ("b", 1), ("a", 1)]
MIXED: Runs = [("b", 1), (None, 1), ("c", 1), ("a", 5), (None, 2), ("c", 3)]
PREFILL: Runs = [(None, 2), ("c", 3), ("c", 1), ("b", 2)]


@pytest.mark.parametrize("runs", [DECODE, MIXED, PREFILL], ids=["decode", "mixed", "prefill"])
def test_each_row_gets_its_own_delta(runs: Runs, gpu: torch.device) -> None:
    stand = Stand(gpu)
    heads = [(owner, 1) for owner, _ in runs]
    stand.begin(runs, heads)
    rows = sum(count for _, count in runs)
    x = stand.on(_random(rows, 40, seed=1))
    stand.check("q", runs, x)
    stand.check("k", runs, x)
    stand.check("head", heads, stand.on(_random(len(heads), 32, seed=2)))


def test_float16_rows(gpu: torch.device) -> None:
    stand = Stand(gpu, dtype=torch.float16)
    stand.begin(MIXED)
    stand.check("k", MIXED, stand.on(_random(13, 40, seed=1)), tolerance=1e-2)


def test_modules_of_a_group_share_the_first_product(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[int] = []

    def note(x: Tensor, *rest: Any) -> Tensor:
        launched.append(len(x))
        return shrink(x, *rest)

    monkeypatch.setattr(module, "shrink", note)
    stand = Stand(gpu)
    stand.begin(DECODE)
    x, other = stand.on(_random(5, 40, seed=1)), stand.on(_random(5, 40, seed=2))
    for name, inputs in (("q", x), ("k", x), ("k", other)):
        stand.check(name, DECODE, inputs)
    assert launched == [5, 5]


def test_what_no_adapter_adds_to_launches_nothing(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shrink", "expand"):
        monkeypatch.setattr(module, name, None)
    stand = Stand(gpu)
    x = stand.on(_random(3, 40, seed=1))
    for runs in ([(None, 1), (None, 2)], [("b", 1), ("b", 2)]):
        stand.begin(runs)
        stand.check("q", runs, x)


def test_fixed_rows_take_the_slots_that_their_tensor_holds_when_they_run(gpu: torch.device) -> None:
    stand = Stand(gpu)
    slots = torch.full((4,), -1, dtype=torch.int32, device=gpu)
    x, y = stand.on(_random(4, 40, seed=1)), stand.on(_random(4, 32, seed=2))
    stand.batch.begin_decode(slots)
    for owners in ([None, "a", "b", "a"], ["c", "a", None, None]):
        slots.copy_(torch.tensor(stand.batch.slots([stand.placed[o] if o else None for o in owners])))
        runs = [(owner, 1) for owner in owners]
        stand.check("k", runs, x.clone())
        stand.check("head", runs, y.clone())


def test_slots_go_from_adapters_that_rest_to_those_that_run(gpu: torch.device) -> None:
    stand = Stand(gpu, slots=2)
    x = stand.on(_random(2, 40, seed=1))
    for runs in ([("a", 1), ("b", 1)], [("c", 1), ("b", 1)], [("a", 1), ("c", 1)]):
        stand.begin(runs)
        stand.check("k", runs, x)
    with pytest.raises(ValueError, match="all 2 adapter slots"):
        stand.begin([("a", 1), ("b", 1), ("c", 1)])


def test_a_slot_keeps_no_adapter_in_memory(gpu: torch.device) -> None:
    stand = Stand(gpu, slots=1)
    stand.begin([("a", 1)])
    stand.batch.end()
    memory = weakref.ref(stand.placed.pop("a"))
    gc.collect()
    assert memory() is None
    stand.begin([("c", 1)])
    stand.check("q", [("c", 1)], stand.on(_random(1, 40, seed=1)))


def test_refuses_a_rank_that_its_slots_do_not_hold(gpu: torch.device) -> None:
    with pytest.raises(InvalidAdapter, match="k has rank 9, more than 8"):
        Stand(gpu).batch.place(_weights("big", {"q": 8, "k": 9}))


def test_other_rows_than_announced_are_an_error(gpu: torch.device) -> None:
    stand = Stand(gpu)
    stand.begin(DECODE)
    with pytest.raises(RuntimeError, match="q got 4 rows where the step has 5"):
        stand.layers["q"](stand.on(_random(4, 40, seed=1)))


@pytest.mark.parametrize("runs", [terms.DECODE, terms.MIXED], ids=str)
def test_all_terms_in_one_batch(runs: Runs, gpu: torch.device) -> None:
    batch = CudaBatch(terms.GROUPS, terms.SPECS, torch.float32, gpu, BatchSizes(6, 32))
    placed = {name: batch.place(terms.weights(name)).to(gpu) for name in terms.ADAPTERS}
    segments: list[Segment[PlacedAdapter]] = []
    for owner, count in runs:
        start = segments[-1].stop if segments else 0
        segments.append(Segment(start, start + count, placed[owner] if owner else None))
    batch.begin(segments, segments)
    for index, names in enumerate(terms.GROUPS):
        x = terms.inputs(names[0], runs).to(gpu)
        for member, name in enumerate(names):
            bias = terms.BIASES[name]
            linear = PlainLinear(terms.WEIGHTS[name].to(gpu), None if bias is None else bias.to(gpu))
            layer = BatchedLinear(name, linear, bias, batch, index, member, name == "head")
            got = layer(x).double().cpu()
            for row, owner in enumerate(terms.owners(runs)):
                exact = terms.expected(name, x[row], owner)
                torch.testing.assert_close(got[row], exact, rtol=2e-5, atol=2e-5)
