"""Magnitudes, shifts and scaled inputs reach the rows of their own adapter alone, in every form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.batch import forms
from adapters.batch.batched import AdapterBatch, BatchedLinear
from adapters.batch.inputs import ScaledInputs
from adapters.batch.linear import PlainLinear, make_linear
from adapters.batch.native.batch import NativeBatch
from adapters.batch.native.gemm import library
from adapters.batch.plain import PlainBatch
from adapters.batch.segment import Segment
from tests.adapters.terms import (
    ADAPTERS,
    BIASES,
    DECODE,
    GROUPS,
    LONG,
    MIXED,
    SIZES,
    WEIGHTS,
    Runs,
    expected,
    inputs,
    owners,
    weights,
)

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


@dataclass
class Form:
    """How the deltas are computed, and in which type."""

    name: str
    dtype: torch.dtype

    def batch(self) -> AdapterBatch[Any, Any]:
        if self.name != "native":
            return PlainBatch(GROUPS, self.dtype)
        native = library()
        assert native is not None, "these tests need a C++ compiler"
        return NativeBatch(GROUPS, native, self.dtype)

    def linear(self, module: str) -> Any:
        bias = BIASES[module]
        weight, bias = WEIGHTS[module].to(self.dtype), None if bias is None else bias.to(self.dtype)
        return (make_linear if self.name == "native" else PlainLinear)(weight, bias)


@pytest.fixture(
    params=[
        (n, d) for n in ("native", "concatenated", "by segment") for d in (torch.float32, torch.bfloat16)
    ],
    ids=str,
)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    name, dtype = request.param
    monkeypatch.setattr(forms, "SEGMENT_SECONDS", 0.0 if name == "by segment" else math.inf)
    return Form(name, dtype)


class Stand:
    """Two layers that share an input, one alone, and a head that sees other rows; some have a bias."""

    def __init__(self, form: Form) -> None:
        self.dtype = form.dtype
        self.batch = form.batch()
        self.placed = {name: self.batch.place(weights(name)) for name in ADAPTERS}
        self.layers = {
            name: BatchedLinear(
                name, form.linear(name), BIASES[name], self.batch, index, member, name == "head"
            )
            for index, names in enumerate(GROUPS)
            for member, name in enumerate(names)
        }

    def segments(self, runs: Runs) -> list[Segment[Any]]:
        segments: list[Segment[Any]] = []
        for owner, count in runs:
            start = segments[-1].stop if segments else 0
            segments.append(Segment(start, start + count, self.placed[owner] if owner else None))
        return segments

    def run(self, tokens: Runs, logits: Runs, sources: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step: the output of each module."""
        self.batch.begin(self.segments(tokens), self.segments(logits))
        cast = {key: source.to(self.dtype) for key, source in sources.items()}
        given = {name: cast["q"] if name == "k" else cast[name] for name in SIZES}
        got = {name: layer(given[name]) for name, layer in self.layers.items()}
        self.batch.end()
        return got


def _sources(tokens: Runs, logits: Runs) -> dict[str, Tensor]:
    return {"q": inputs("q", tokens), "down": inputs("down", tokens), "head": inputs("head", logits)}


@pytest.mark.parametrize("runs", [DECODE, LONG, MIXED, LONG[:1], DECODE[4:5]], ids=str)
def test_each_row_gets_its_own_terms(runs: Runs, form: Form) -> None:
    heads = [(owner, 1) for owner, _ in runs]
    sources = _sources(runs, heads)
    got = Stand(form).run(runs, heads, sources)
    tolerance = TOLERANCE[form.dtype]
    for name, y in got.items():
        source = sources["q" if name == "k" else name]
        for row, owner in enumerate(owners(heads if name == "head" else runs)):
            exact = expected(name, source[row], owner)
            torch.testing.assert_close(y[row].double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("runs", [DECODE, LONG, MIXED], ids=str)
def test_natively_a_row_is_the_same_alone_and_among_others(runs: Runs) -> None:
    stand = Stand(Form("native", torch.float32))
    sources = _sources(runs, runs)
    together = stand.run(runs, runs, sources)
    for row, owner in enumerate(owners(runs)):
        one = {key: source[row : row + 1] for key, source in sources.items()}
        alone = stand.run([(owner, 1)], [(owner, 1)], one)
        for name in SIZES:
            assert torch.equal(alone[name][0], together[name][row]), (name, row, owner)


def test_rows_of_the_base_are_the_bases_own(form: Form) -> None:
    """Bit for bit, whatever others scale and shift beside them."""
    stand, heads = Stand(form), [(owner, 1) for owner, _ in DECODE]
    sources = _sources(DECODE, heads)
    together, base = stand.run(DECODE, heads, sources), stand.run([(None, 9)], [(None, 9)], sources)
    for name in SIZES:
        for row, owner in enumerate(owners(DECODE)):
            if owner is None or name not in ADAPTERS[owner]:
                assert torch.equal(together[name][row], base[name][row]), (name, row)


def test_infinities_stay_in_their_rows(form: Form) -> None:
    stand = Stand(form)
    runs: Runs = [("dora", 1), (None, 1), ("plain", 1), ("ia3", 1)]
    sources = _sources(runs, runs)
    harmless = stand.run(runs, runs, sources)
    for source in sources.values():
        source[0] = math.inf
    got = stand.run(runs, runs, sources)
    for name in SIZES:
        assert not got[name][0].isfinite().all()
        assert torch.equal(got[name][1:], harmless[name][1:])


def test_scaled_inputs_are_a_copy_and_only_for_their_module() -> None:
    placed = PlainBatch(GROUPS, torch.bfloat16).place(weights("ia3"))
    scaled = ScaledInputs([Segment(0, 1, None), Segment(1, 3, placed), Segment(3, 4, None)])
    assert scaled.groups == {1}
    x = inputs("down", [(None, 4)]).bfloat16()
    before = x.clone()
    assert scaled.of(0, 1, x) is x
    got = scaled.of(1, 0, x)
    scale = ADAPTERS["ia3"]["down"].input_scale
    assert scale is not None
    assert torch.equal(got[1:3], (before[1:3].float() * scale).bfloat16())
    assert torch.equal(got[[0, 3]], before[[0, 3]])
    assert torch.equal(x, before)
