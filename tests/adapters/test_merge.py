"""A merged weight is a new one, computed in float32 from the pristine base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.batch.batched import BatchedLinear
from adapters.batch.linear import make_linear
from adapters.batch.plain import PlainBatch
from adapters.delta import AdapterWeights, EmbeddingDelta, ExpertsDelta, ModuleDelta
from adapters.errors import AdapterError
from adapters.merge import build_merged, merged_weight

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 4, generator=GENERATOR)
BIAS = torch.randn(6, generator=GENERATOR)
DELTA = ModuleDelta(torch.randn(2, 4, generator=GENERATOR), torch.randn(6, 2, generator=GENERATOR), 0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_rounded_once(dtype: torch.dtype) -> None:
    weight = WEIGHT.to(dtype)
    exact = weight.double() + 0.7 * DELTA.b.double() @ DELTA.a.double()
    merged = merged_weight(weight, DELTA)
    assert merged.dtype == dtype
    step = torch.finfo(dtype).eps
    assert torch.allclose(merged.double(), exact, atol=1e-6, rtol=0.51 * step + 1e-6)


def test_leaves_the_base_and_the_adapter_as_they_were() -> None:
    before = [tensor.clone() for tensor in (WEIGHT, DELTA.a, DELTA.b)]
    merged_weight(WEIGHT, DELTA).zero_()
    assert all(torch.equal(*pair) for pair in zip((WEIGHT, DELTA.a, DELTA.b), before, strict=True))


def _layers() -> list[BatchedLinear]:
    batch = PlainBatch([("q",), ("k",)], torch.float32)
    return [
        BatchedLinear(name, make_linear(WEIGHT, BIAS), BIAS, batch, i, 0, False)
        for i, name in enumerate("qk")
    ]


def test_every_targeted_layer_gets_a_merged_copy_with_its_bias() -> None:
    layers = _layers()
    nbytes = build_merged(layers, AdapterWeights("d", {"q": DELTA}))
    assert nbytes == WEIGHT.nbytes
    assert layers[1].merged is None
    assert layers[0].merged is not None
    x = torch.randn(3, 4, generator=GENERATOR)
    expected = x @ (WEIGHT + 0.7 * DELTA.b @ DELTA.a).t() + BIAS
    assert torch.allclose(layers[0].merged(x), expected, atol=1e-5)
    assert torch.equal(layers[0].weight, WEIGHT)


def test_merging_another_replaces_the_first_from_the_pristine_base() -> None:
    """Thirty merges one after the other leave what one alone gives, bit for bit."""
    layers = _layers()
    build_merged(layers, AdapterWeights("d", {"q": DELTA}))
    assert layers[0].merged is not None
    first = layers[0].merged.weight()
    for _ in range(30):
        build_merged(layers, AdapterWeights("e", {"k": DELTA, "q": ModuleDelta(DELTA.a, DELTA.b, 9.0)}))
        build_merged(layers, AdapterWeights("d", {"q": DELTA}))
    assert layers[1].merged is None
    assert torch.equal(layers[0].merged.weight(), first)
    assert all(torch.equal(layer.weight, WEIGHT) for layer in layers)


FULL = replace(
    DELTA,
    magnitude=torch.rand(6, generator=GENERATOR),
    shift=torch.randn(6, generator=GENERATOR),
    input_scale=torch.rand(4, generator=GENERATOR),
)
NONE = torch.empty(0, 4), torch.empty(6, 0), 1.0


def _exact(x: torch.Tensor, bias: torch.Tensor | None, delta: ModuleDelta) -> torch.Tensor:
    """One map in float64, term by term."""
    x = x.double()
    y = (x if delta.input_scale is None else x * delta.input_scale.double()) @ WEIGHT.double().t()
    y = y if bias is None else y + bias.double()
    y = y if delta.magnitude is None else y * delta.magnitude.double()
    y = y + delta.scale * (x @ delta.a.double().t()) @ delta.b.double().t()
    return y if delta.shift is None else y + delta.shift.double()


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "delta",
    [
        FULL,
        replace(DELTA, magnitude=FULL.magnitude),
        ModuleDelta(*NONE, shift=FULL.shift),
        ModuleDelta(*NONE, magnitude=FULL.magnitude),
        ModuleDelta(*NONE, input_scale=FULL.input_scale),
    ],
    ids=["all terms", "dora", "shift", "magnitude", "input scale"],
)
def test_every_term_is_in_the_copy(delta: ModuleDelta, bias: torch.Tensor | None) -> None:
    batch = PlainBatch([("q",)], torch.float32)
    layer = BatchedLinear("q", make_linear(WEIGHT, bias), bias, batch, 0, 0, False)
    nbytes = build_merged([layer], AdapterWeights("d", {"q": delta}))
    assert layer.merged is not None
    x = torch.randn(3, 4, generator=GENERATOR)
    assert torch.allclose(layer.merged(x).double(), _exact(x, bias, delta), atol=1e-5)
    unchanged = delta.shift is None and (bias is None or delta.magnitude is None)
    assert nbytes == WEIGHT.nbytes + (0 if unchanged else BIAS.nbytes)
    assert torch.equal(layer.weight, WEIGHT)


def test_what_linear_maps_can_not_hold_is_refused_by_name() -> None:
    row = torch.ones(1, 4)
    refused: dict[str, dict[str, Any]] = {
        "changes the embeddings model.embed": {"embeddings": {"model.embed": EmbeddingDelta()}},
        "adds to the experts model.experts": {"experts": {"model.experts": ExpertsDelta(row, row, 1.0)}},
        "replaces model.norm": {"replaced": {"model.norm": {"weight": row}}},
        "has a task head score.weight": {"head": {"score.weight": row}},
        "from its invocation tokens on only": {"invocation": (1, 2)},
    }
    layers = _layers()
    for reason, fields in refused.items():
        with pytest.raises(AdapterError, match=f"adapter d can't be merged: it .*{reason}.*without --merge"):
            build_merged(layers, AdapterWeights("d", {"q": DELTA}, **fields))
    assert all(layer.merged is None for layer in layers)
