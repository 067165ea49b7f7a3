"""The terms of DeBERTa's attention that look at positions, against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DisentangledSelfAttention,
    build_relative_position,
)

from adapters.batch.batched import BatchedLinear
from adapters.batch.linear import PlainLinear
from adapters.batch.plain import PlainBatch
from adapters.batch.positions import PositionLinear, PositionOwners
from server.engine.encoder.disentangled import position_rows, position_scores
from tests.server.engine.encoder.stand import FAMILIES

PROJECTIONS = ("query_proj", "key_proj", "pos_query_proj", "pos_key_proj")


def _own(attention: Any) -> None:
    """Its projections as a served model has them, of the bare base, for a batch of three."""
    batch = PlainBatch([(name,) for name in PROJECTIONS], torch.float32)
    owners = PositionOwners(1, torch.zeros(3, dtype=torch.int64))
    for index, name in enumerate(PROJECTIONS):
        linear = getattr(attention, name, None)
        if linear is not None:
            layer = BatchedLinear(
                name, PlainLinear(linear.weight, linear.bias), linear.bias, batch, index, 0, True
            )
            setattr(attention, name, PositionLinear(layer, None, owners))


@pytest.mark.parametrize("tokens", [1, 5, 30])
@pytest.mark.parametrize("kinds", [["c2p"], ["p2c"], ["c2p", "p2c"]])
@pytest.mark.parametrize("family", ["deberta-v2", "deberta-v3"])
@torch.inference_mode()
def test_scores_are_those_of_transformers(family: str, kinds: list[str], tokens: int) -> None:
    torch.manual_seed(tokens)
    model_type, fields = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **{**fields, "pos_att_type": kinds})
    attention = DisentangledSelfAttention(config).eval()
    query, key = torch.randn(2, 12, tokens, 8).unbind()
    table = torch.randn(position_rows(config, tokens), 32)
    places = build_relative_position(
        query, key, bucket_size=attention.position_buckets, max_position=attention.max_relative_positions
    )
    arguments = query, key, places, table, 1 + len(kinds)
    expected = attention.disentangled_attention_bias(*arguments)
    _own(attention)
    torch.testing.assert_close(position_scores(attention, *arguments), expected, rtol=1e-5, atol=1e-5)


def test_how_many_positions_are_projected() -> None:
    found = {}
    for family, (model_type, fields) in FAMILIES.items():
        config = AutoConfig.for_model(model_type, **fields)
        found[family] = [position_rows(config, tokens) for tokens in (3, 40)]
    none = {family: [0, 0] for family in FAMILIES}
    assert found == {**none, "deberta": [6, 32], "deberta-v2": [32, 32], "deberta-v3": [12, 12]}
