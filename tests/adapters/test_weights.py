"""The base's parameters as adapters get them: those of the stock model, whatever form they are served in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from tests.kit import Families


@pytest.fixture(params=["gpt2", "qwen2"])
def family(request: Any, families: Families) -> Any:
    return families(request.param)


def test_every_parameter_of_the_base(family: Any) -> None:
    names = family.model.spec.parameters
    assert len(names) > 20
    for name in names:
        stock, module = family.stock.get_parameter(name), family.stock.get_submodule(name.rpartition(".")[0])
        turned = isinstance(module, Conv1D) and stock.dim() == 2
        weight = family.model.weight(name)
        assert weight.dtype == torch.float32
        assert torch.equal(weight, stock.T if turned else stock), name
