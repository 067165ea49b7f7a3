"""Rows of a table that each adapter of a step projects for itself."""

from __future__ import annotations

import torch

from adapters.batch.batched import BatchedLinear
from adapters.batch.linear import PlainLinear
from adapters.batch.plain import PlainBatch
from adapters.batch.positions import PositionLinear, PositionOwners
from adapters.batch.segment import Segment
from adapters.delta import AdapterWeights, ModuleDelta

TABLE = torch.randn(1, 6, 8)
WEIGHT = torch.randn(5, 8)


def _delta() -> ModuleDelta:
    return ModuleDelta(torch.randn(2, 8), torch.randn(5, 2), 0.5)


def test_each_sequence_gets_the_projections_of_its_own_adapter() -> None:
    batch = PlainBatch([("m",), ("m",)], torch.float32)  # called on tokens, and on the table
    linear = PlainLinear(WEIGHT, None)
    tokens = BatchedLinear("m", linear, None, batch, 0, 0, False)
    owners = PositionOwners(3, torch.tensor([2, 0, 2, 1]))
    layer = PositionLinear(BatchedLinear("m", linear, None, batch, 1, 0, True), tokens, owners)
    deltas = [_delta(), _delta()]
    placed = [batch.place(AdapterWeights(str(i), {"m": delta})) for i, delta in enumerate(deltas)]
    own = [placed[0], None, placed[1]]
    of_sequence = [own[2], own[0], own[2], own[1]]
    batch.begin(
        [Segment(3 * i, 3 * i + 3, adapter) for i, adapter in enumerate(of_sequence)],
        [Segment(6 * i, 6 * i + 6, adapter) for i, adapter in enumerate(own)],
    )
    x = torch.randn(4, 3, 8)
    weights = [WEIGHT + 0.5 * delta.b @ delta.a for delta in deltas]
    expected = [weights[1], weights[0], weights[1], WEIGHT]
    for projected, y, row, weight in zip(layer.project(TABLE), layer(x), x, expected, strict=True):
        torch.testing.assert_close(projected, TABLE[0] @ weight.t(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(y, row @ weight.t(), rtol=1e-5, atol=1e-5)


def test_a_layer_that_sees_no_tokens_projects_when_it_is_called() -> None:
    batch = PlainBatch([("m",)], torch.float32)
    layer = PositionLinear(
        BatchedLinear("m", PlainLinear(WEIGHT, None), None, batch, 0, 0, True), None, PositionOwners()
    )
    batch.begin([Segment(0, 3, None)], [Segment(0, 6, None)])
    assert torch.equal(layer(TABLE), layer.project(TABLE))
    torch.testing.assert_close(layer(TABLE), TABLE @ WEIGHT.t())
