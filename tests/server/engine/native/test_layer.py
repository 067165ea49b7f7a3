"""Native decoder layers equal the models' own, and stand only where they do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from adapters.batch.native.gemm import library
from server.engine.attention import KVCache, StepLayout
from server.engine.base import ServedModel
from server.engine.native.layer import NativeLayer
from tests.tiny import make_model

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler here")

COMMON = ["llama", "mistral", "qwen2", "qwen3"]
OTHERS = ["gpt2", "opt", "gemma2", "phi3"]
SIZES = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def _serve(model: Any) -> ServedModel:
    return ServedModel(model, name="base", digest="d")


def _native(served: ServedModel) -> list[bool]:
    layers: Any = served.model.get_decoder().layers
    return [isinstance(layer.forward, NativeLayer) for layer in layers]


def _logits(served: ServedModel, tokens: list[int]) -> torch.Tensor:
    """Of every position, from one pass over a sequence."""
    layout = StepLayout.of(4, [list(range(len(tokens)))], [len(tokens)], [len(tokens)])
    plan = served.plan_type(KVCache(4 * len(tokens), served.dtype, served.device), layout)
    rows = torch.arange(len(tokens))
    return served.forward(torch.tensor(tokens), rows, plan, rows)


@pytest.mark.parametrize("family", COMMON)
def test_equals_the_models_own(family: str) -> None:
    own = make_model(family)
    served = _serve(copy.deepcopy(own))
    assert all(_native(served))
    tokens = torch.randint(0, own.config.vocab_size, (40,), generator=torch.Generator().manual_seed(1))
    expected = own(tokens[None]).logits[0]
    assert torch.allclose(_logits(served, tokens.tolist()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head_dim", [2, 6, 16, 24])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
def test_any_width(kind: Callable[..., Any], head_dim: int) -> None:
    torch.manual_seed(0)
    config = kind(**SIZES, hidden_size=20, intermediate_size=27, head_dim=head_dim)
    own = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in own.named_parameters():
        if "norm" in name:  # they begin as ones, which would hide a norm that is left out
            parameter.data = torch.rand(parameter.shape) + 0.5
    served = _serve(copy.deepcopy(own))
    assert all(_native(served))
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = own(torch.tensor([tokens])).logits[0]
    assert torch.allclose(_logits(served, tokens), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", OTHERS)
def test_layers_of_another_kind_keep_their_own_code(family: str) -> None:
    served = _serve(make_model(family))
    assert not any(isinstance(module.forward, NativeLayer) for module in served.model.modules())


def test_a_layer_that_only_looks_common_keeps_its_own_code() -> None:
    model = make_model("llama")
    layer: Any = model.model.layers[1]
    own = layer.forward
    layer.forward = lambda x, **options: own(x, **options) * 1.01
    assert _native(_serve(model)) == [index != 1 for index in range(len(model.model.layers))]


def test_a_gate_other_than_silu_stays() -> None:
    model = make_model("llama")
    model.model.layers[0].mlp.act_fn = nn.GELU()
    assert _native(_serve(model))[:2] == [False, True]


def test_hooks_are_called() -> None:
    served = _serve(make_model("llama"))
    before = _logits(served, [1, 2, 3])
    norm: Any = served.model.get_decoder().layers[0].post_attention_layernorm
    hook = norm.register_forward_hook(lambda module, args, output: 2 * output)
    changed = _logits(served, [1, 2, 3])
    hook.remove()
    assert not torch.allclose(changed, before, rtol=1e-3)
    assert torch.equal(_logits(served, [1, 2, 3]), before)


def test_a_gate_of_any_size() -> None:
    served = _serve(make_model("llama"))
    gate = torch.tensor([-1e4, -200.0, -88.5, -87.0, -1.0, -0.0, 1e-8, 1.0, 87.0, 200.0, 1e4] * 3)
    up = torch.linspace(-2, 2, len(gate))
    expected = nn.functional.silu(gate) * up
    native: Any = served.model.get_decoder().layers[0].forward
    native._library.silu_product(gate.data_ptr(), up.data_ptr(), len(gate))
    assert torch.allclose(gate, expected, rtol=1e-6, atol=1e-30)
