"""The two forms of the batched LoRA product: the source of the rates in `adapters/forms.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from adapters import forms
from adapters.batched import AdapterBatch, BatchedLinear
from adapters.delta import AdapterWeights, ModuleDelta
from adapters.forms import Segment
from adapters.linear import has_fast_bfloat16
from adapters.placed import place
from bench.load import median
from bench.shapes import SHAPES

LAYERS = 4  # enough that weights do not stay in the cache from one pass to the next
CASES = ((1, 8), (8, 8), (32, 8), (32, 32), (128, 8), (512, 8))


def measure_forms(shape: str, rank: int, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds for one layer, for each number of rows and adapters: base, concatenated, by segment."""
    dtype = torch.bfloat16 if has_fast_bfloat16() else torch.float32
    fields = SHAPES[shape][1]
    hidden, middle = fields["hidden_size"], fields["intermediate_size"]
    kv = hidden // fields["num_attention_heads"] * fields["num_key_value_heads"]
    groups = [
        [("q", hidden, hidden), ("k", hidden, kv), ("v", hidden, kv)],
        [("o", hidden, hidden)],
        [("gate", hidden, middle), ("up", hidden, middle)],
        [("down", middle, hidden)],
    ]
    flat = [[(f"{i}.{n}", a, b) for n, a, b in group] for i in range(LAYERS) for group in groups]
    names = [tuple(name for name, _, _ in group) for group in flat]
    batch = AdapterBatch(names)
    layers = [
        [
            BatchedLinear(name, torch.randn(out, inp).to(dtype), None, batch, index, member, False)
            for member, (name, inp, out) in enumerate(group)
        ]
        for index, group in enumerate(flat)
    ]
    weights = [
        AdapterWeights(
            f"a{number}",
            {
                name: ModuleDelta(torch.randn(rank, inp) / 30, torch.randn(out, rank) / 30, 2.0)
                for group in flat
                for name, inp, out in group
            },
        )
        for number in range(max(adapters for _, adapters in CASES))
    ]
    placed = [place(adapter, names, dtype) for adapter in weights]
    results = []
    for rows, adapters in CASES:
        inputs = [torch.randn(rows, group[0][1]).to(dtype) for group in flat]
        edges = [rows * i // adapters for i in range(adapters + 1)]
        segments = [Segment(a, b, p) for a, b, p in zip(edges, edges[1:], placed, strict=False) if b > a]

        def forward(inputs: list[torch.Tensor] = inputs) -> None:
            for group, x in zip(layers, inputs, strict=True):
                for layer in group:
                    layer(x)

        def step(seconds: float, segments: list[Segment] = segments) -> float:
            with mock.patch.object(forms, "SEGMENT_SECONDS", seconds):
                batch.begin(segments, [])
            return _milliseconds(forward, repeats) / LAYERS

        with torch.inference_mode():
            batch.end()
            base = _milliseconds(forward, repeats) / LAYERS
            results.append(
                {
                    "rows": rows,
                    "adapters": adapters,
                    "base": base,
                    "concatenated": step(float("inf")),
                    "by segment": step(0.0),
                    "multiply-adds wasted": (rows * adapters - rows) * placed[0].parameters / LAYERS,
                    "segments x modules": len(segments) * placed[0].modules / LAYERS,
                }
            )
    return results


def _milliseconds(run: Callable[[], None], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    return median(times)
