"""Every row gets its own adapter's delta, in both forms, whatever stands beside it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from adapters.batch import forms
from adapters.batch.batched import AdapterBatch, BatchedLinear
from adapters.batch.linear import PlainLinear, make_linear
from adapters.batch.native.batch import NativeBatch
from adapters.batch.native.gemm import library
from adapters.batch.plain import PlainBatch
from adapters.batch.segment import Segment
from adapters.delta import AdapterWeights, ModuleDelta

GROUPS = [("q", "k"), ("head",)]
SIZES = {"q": (6, 8), "k": (6, 4), "head": (8, 12)}


def _random(*sizes: int, seed: int) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {name: _random(out, inp, seed=inp) for name, (inp, out) in SIZES.items()}


def _weights(digest: str, ranks: dict[str, int], size: float = 1.0) -> AdapterWeights:
    deltas = {}
    for name, rank in ranks.items():
        inputs, outputs = SIZES[name]
        seed = sum((digest + name).encode())
        a, b = size * _random(rank, inputs, seed=seed), size * _random(outputs, rank, seed=seed + 1)
        deltas[name] = ModuleDelta(a, b, 0.5)
    return AdapterWeights(digest, deltas)


ADAPTERS = {
    "a": _weights("a", {"q": 2, "k": 3, "head": 1}),
    "b": _weights("b", {"k": 4}),
    "c": _weights("c", {"q": 1, "head": 5}),
}


@pytest.fixture(params=["native", "concatenated", "by segment"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the deltas are computed."""
    monkeypatch.setattr(forms, "SEGMENT_SECONDS", 0.0 if request.param == "by segment" else math.inf)
    return str(request.param)


def make_batch(form: str) -> AdapterBatch[Any, Any]:
    if form != "native":
        return PlainBatch(GROUPS, torch.float32)
    native = library()
    assert native is not None, "these tests need a C++ compiler"
    return NativeBatch(GROUPS, native)


class Stand:
    """Two layers that share an input, and a head that sees other rows."""

    def __init__(self, form: str, adapters: dict[str, AdapterWeights] = ADAPTERS) -> None:
        self.batch = make_batch(form)
        self.placed = {name: self.batch.place(w) for name, w in adapters.items()}
        make = make_linear if form == "native" else PlainLinear
        self.layers = {
            name: BatchedLinear(
                name, make(WEIGHTS[name], None), None, self.batch, index, member, name == "head"
            )
            for index, names in enumerate(GROUPS)
            for member, name in enumerate(names)
        }

    def segments(self, owners: Sequence[str | None]) -> list[Segment[Any]]:
        return [Segment(i, i + 1, self.placed[o] if o else None) for i, o in enumerate(owners)]


def _expected(name: str, x: torch.Tensor, owners: Sequence[str | None]) -> torch.Tensor:
    rows = []
    for row, owner in zip(x.double(), owners, strict=True):
        y = WEIGHTS[name].double() @ row
        delta = ADAPTERS[owner].deltas.get(name) if owner else None
        if delta is not None:
            y = y + delta.scale * delta.b.double() @ (delta.a.double() @ row)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(6))
def test_each_row_gets_its_own_delta(seed: int, form: str) -> None:
    stand, chance = Stand(form), random.Random(seed)
    for step in range(5):
        owners = [chance.choice(["a", "b", "c", None]) for _ in range(chance.randint(1, 9))]
        heads = [chance.choice(owners) for _ in range(chance.randint(1, 4))]
        x, h = _random(len(owners), 6, seed=step), _random(len(heads), 8, seed=step + 50)
        stand.batch.begin(stand.segments(owners), stand.segments(heads))
        for name in ("q", "k"):
            got = stand.layers[name](x[None])
            assert got.shape == (1, len(owners), SIZES[name][1])
            assert torch.allclose(got[0].double(), _expected(name, x, owners), atol=1e-5)
        assert torch.allclose(stand.layers["head"](h).double(), _expected("head", h, heads), atol=1e-5)
        stand.batch.end()
        assert torch.allclose(stand.layers["q"](x).double(), _expected("q", x, [None] * len(x)), atol=1e-5)


def test_two_inputs_of_one_group_are_not_confused(form: str) -> None:
    """The shared product is remembered for one input tensor only."""
    stand, owners = Stand(form), ["a", "c"]
    first, second = _random(2, 6, seed=1), _random(2, 6, seed=2)
    stand.batch.begin(stand.segments(owners), [])
    stand.layers["q"](first)
    assert torch.allclose(stand.layers["k"](second).double(), _expected("k", second, owners), atol=1e-5)


def test_a_neighbour_that_overflows_harms_only_itself(form: str) -> None:
    """Finite weights can still overflow in a product; the base's rows and others' stay as they are."""
    wild = {"wild": _weights("wild", {"q": 2, "k": 2}, size=3e38).deltas}
    stand = Stand(form, ADAPTERS | {"wild": AdapterWeights("wild", _clamped(wild["wild"]))})
    owners = ["a", "wild", None, "c"]
    x = 10 * _random(4, 6, seed=3)
    stand.batch.begin(stand.segments(owners), [])
    for name in ("q", "k"):
        got = stand.layers[name](x)
        assert not torch.isfinite(got[1]).all()
        for row in (0, 2, 3):
            expected = _expected(name, x[row : row + 1], owners[row : row + 1])[0]
            assert torch.allclose(got[row].double(), expected, atol=1e-4)


def _clamped(deltas: object) -> dict[str, ModuleDelta]:
    assert isinstance(deltas, dict)
    most = torch.finfo(torch.float32).max / 4
    return {
        name: ModuleDelta(d.a.nan_to_num().clamp(-most, most), d.b.nan_to_num().clamp(-most, most), d.scale)
        for name, d in deltas.items()
    }


def test_a_row_of_nan_harms_only_itself(form: str) -> None:
    stand, owners = Stand(form), ["a", "b", None, "c"]
    x = _random(4, 6, seed=4)
    x[1] = math.nan
    stand.batch.begin(stand.segments(owners), [])
    got = stand.layers["k"](x)
    for row in (0, 2, 3):
        expected = _expected("k", x[row : row + 1], owners[row : row + 1])[0]
        assert torch.allclose(got[row].double(), expected, atol=1e-5)


def test_rows_that_are_not_the_steps_are_refused(form: str) -> None:
    stand = Stand(form)
    stand.batch.begin(stand.segments(["a", "b"]), [])
    with pytest.raises(RuntimeError, match="q got 3 rows where the step has 2"):
        stand.layers["q"](torch.zeros(3, 6))


def test_a_step_of_the_base_alone_computes_no_delta(form: str) -> None:
    stand = Stand(form)
    stand.batch.begin(stand.segments([None, None]), stand.segments([None]))
    x = _random(7, 6, seed=0)  # no rows are counted either
    assert torch.allclose(stand.layers["q"](x), x @ WEIGHTS["q"].t(), atol=1e-5)


def test_merged_copies_are_used_only_when_told(form: str) -> None:
    stand = Stand(form)
    layer, x = stand.layers["q"], _random(2, 6, seed=0)
    layer.merged = make_linear(2 * WEIGHTS["q"], None)
    assert torch.allclose(layer(x), x @ WEIGHTS["q"].t(), atol=1e-5)
    stand.batch.use_merged = True
    assert torch.allclose(layer(x), 2 * x @ WEIGHTS["q"].t(), atol=1e-5)
    assert torch.equal(layer.weight, WEIGHTS["q"])
