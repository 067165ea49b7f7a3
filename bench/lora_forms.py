"""The forms of the batched LoRA product: the source of the rates in `adapters/batch/forms.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from adapters.batch import forms
from adapters.batch.batched import AdapterBatch, BatchedLinear
from adapters.batch.linear import PackedLinear, PlainLinear, can_pack, has_fast_bfloat16
from adapters.batch.native.batch import NativeBatch
from adapters.batch.native.gemm import library
from adapters.batch.native.linear import NativeLinear
from adapters.batch.plain import PlainBatch
from adapters.batch.segment import Segment
from adapters.delta import AdapterWeights, ModuleDelta
from bench.load import median
from bench.rounds import Figures, Rounds
from bench.setting import Bench
from bench.shapes import SHAPES

LAYERS = 4  # enough that weights do not stay in the cache from one pass to the next
CASES = ((1, 8), (8, 8), (32, 8), (32, 32), (128, 8), (512, 8))
Group = list[tuple[str, int, int]]
"""Modules that share an input: name, inputs, outputs."""


class Forms:
    """The linear layers of a few transformer layers over one kind of batch, with adapters placed for it."""

    def __init__(self, groups: list[Group], rank: int, batch: AdapterBatch[Any, Any], linear: Any) -> None:
        """`linear` makes the frozen product from a `(outputs, inputs)` float32 weight."""
        self.batch = batch
        self.layers = [
            [
                BatchedLinear(name, linear(torch.randn(out, inp)), None, batch, index, member, False)
                for member, (name, inp, out) in enumerate(group)
            ]
            for index, group in enumerate(groups)
        ]
        most = max(adapters for _, adapters in CASES)
        self.placed = [batch.place(random_adapter(groups, rank, number)) for number in range(most)]

    def run(self, inputs: list[torch.Tensor], adapters: int, repeats: int) -> float:
        """Milliseconds for one layer; `adapters` share the rows evenly, 0 is the base."""
        rows = inputs[0].shape[0]
        edges = [rows * i // adapters for i in range(adapters + 1)] if adapters else []
        pairs = zip(edges, edges[1:], self.placed, strict=False)
        self.batch.begin([Segment(a, b, placed) for a, b, placed in pairs if b > a], [])

        def forward() -> None:
            for group, x in zip(self.layers, inputs, strict=True):
                for layer in group:
                    layer(x)

        try:
            return _milliseconds(forward, repeats) / LAYERS
        finally:
            self.batch.end()


def measure_forms(bench: Bench) -> Rounds:
    """Milliseconds for one layer, for each number of rows and adapters, of each form there is."""
    dtype = torch.bfloat16 if has_fast_bfloat16() else torch.float32
    groups = list(groups_of(bench.shape))
    names = [tuple(name for name, _, _ in group) for group in groups]

    def linear(weight: torch.Tensor) -> PackedLinear | PlainLinear:
        cast = weight.to(dtype)
        return PackedLinear(cast, None) if can_pack(cast) else PlainLinear(cast, None)

    plain = Forms(groups, bench.rank, PlainBatch(names, dtype), linear)
    compiled = library()
    native = compiled and Forms(
        groups,
        bench.rank,
        NativeBatch(names, compiled),
        lambda weight: NativeLinear(compiled, weight, None),
    )
    results: dict[str, list[Figures]] = {}
    for rows, adapters in CASES:
        inputs = [torch.randn(rows, group[0][1]) for group in groups]
        figures: Figures = {"round": 0}
        with torch.inference_mode():
            cast = [x.to(dtype) for x in inputs]
            figures["base"] = plain.run(cast, 0, bench.repeats)
            for form, seconds in (("concatenated", float("inf")), ("by segment", 0.0)):
                with mock.patch.object(forms, "SEGMENT_SECONDS", seconds):
                    figures[form] = plain.run(cast, adapters, bench.repeats)
            if native:
                figures["native base"] = native.run(inputs, 0, bench.repeats)
                figures["native"] = native.run(inputs, adapters, bench.repeats)
        results[f"{rows} rows, {adapters} adapters"] = [figures]
    return Rounds(
        results, notes=[f"milliseconds of one layer; {dtype}, native in float32".replace("torch.", "")]
    )


def groups_of(shape: str) -> Iterator[Group]:
    """The linear layers of `LAYERS` transformer layers, by what they read."""
    fields = SHAPES[shape][1]
    hidden, middle = fields["hidden_size"], fields["intermediate_size"]
    kv = hidden // fields["num_attention_heads"] * fields["num_key_value_heads"]
    for i in range(LAYERS):
        yield [(f"{i}.q", hidden, hidden), (f"{i}.k", hidden, kv), (f"{i}.v", hidden, kv)]
        yield [(f"{i}.o", hidden, hidden)]
        yield [(f"{i}.gate", hidden, middle), (f"{i}.up", hidden, middle)]
        yield [(f"{i}.down", middle, hidden)]


def random_adapter(groups: list[Group], rank: int, number: int) -> AdapterWeights:
    deltas = {
        name: ModuleDelta(torch.randn(rank, inp) / 30, torch.randn(out, rank) / 30, 2.0)
        for group in groups
        for name, inp, out in group
    }
    return AdapterWeights(f"a{number}", deltas)


def _milliseconds(run: Callable[[], None], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    return median(times)
