"""The checksum covers every weight as it is used, also those that lie in batched layers."""

from __future__ import annotations

import copy

import torch

from server.engine.base import ServedModel
from server.engine.checksum import weights_checksum
from tests.kit import Families


def test_any_changed_weight_changes_it(families: Families) -> None:
    stock = families("gpt2").stock
    served = ServedModel(copy.deepcopy(stock), name="base", digest="d")
    before = weights_checksum(served.model, served.linears)
    assert before == weights_checksum(served.model, served.linears)
    for name in (
        "transformer.wte.weight",
        "transformer.h.1.mlp.c_fc.bias",
        "transformer.h.1.mlp.c_fc.weight",
    ):
        changed = copy.deepcopy(stock)
        with torch.no_grad():
            changed.get_parameter(name).view(-1)[3] += 1e-3
        other = ServedModel(changed, name="base", digest="d")
        assert weights_checksum(other.model, other.linears) != before, name
