"""Native norms equal the models' own, and stand only where they do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from server.engine.native.norms import NativeRMSNorm, use_native_norms
from tests.tiny import make_model


def _with_weights(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
@pytest.mark.parametrize("width", [1, 15, 16, 70, 896])
def test_equals_the_models_own(kind: type[nn.Module], width: int) -> None:
    own = _with_weights(kind(width, eps=1e-3))
    model = nn.Sequential(copy.deepcopy(own))
    assert use_native_norms(model) == 1
    for shape in [(1, 5, width), (1, 2, 3, width), (0, width), (1, 700, width)]:
        x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
        assert torch.allclose(model(x), own(x), rtol=1e-5, atol=1e-5)
    turned = torch.randn(2, width, 4).transpose(1, 2)  # as query norms over heads get it
    assert torch.allclose(model(turned), own(turned), rtol=1e-5, atol=1e-5)


def test_a_row_is_the_same_beside_any_others() -> None:
    model = nn.Sequential(_with_weights(LlamaRMSNorm(70)))
    use_native_norms(model)
    x = torch.randn(2000, 70, generator=torch.Generator().manual_seed(3))
    together = model(x)
    for row in (0, 1, 999, 1999):
        assert torch.equal(model(x[row : row + 1])[0], together[row])


class _Twice(nn.Module):
    """Looks like an RMS norm and is none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def test_what_computes_something_else_stays() -> None:
    others = [nn.LayerNorm(8), _with_weights(_Twice(8)), nn.Linear(8, 8), LlamaRMSNorm(8).bfloat16()]
    model = nn.Sequential(*others)
    assert use_native_norms(model) == 0
    assert list(model) == others


def test_keeps_the_parameters_and_their_names() -> None:
    model = make_model("qwen3")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert use_native_norms(model) == sum("norm" in name for name in before)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert isinstance(model.model.norm, NativeRMSNorm)
