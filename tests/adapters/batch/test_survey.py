"""What can carry an adapter is seen on the model at hand: every linear layer, grouped by shared input."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from adapters.base import LinearSpec
from adapters.batch.batched import BatchSizes
from adapters.batch.cuda.batch import CudaBatch
from adapters.batch.native.batch import NativeBatch
from adapters.batch.native.gemm import library
from adapters.batch.plain import PlainBatch
from adapters.batch.survey import PROBE_TOKENS, choose_batch, survey
from tests.gpu import DEVICE
from tests.kit import Families
from tests.tiny import FAMILIES, VOCAB

GROUPS = {
    "llama": [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)],
    "gpt2": [("c_attn",), ("c_proj",), ("c_fc",), ("c_proj",)],
    "opt": [("q_proj", "k_proj", "v_proj"), ("out_proj",), ("fc1",), ("fc2",)],
    "phi3": [("qkv_proj",), ("o_proj",), ("gate_up_proj",), ("down_proj",)],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_sees_every_linear_layer_with_its_shape(name: str, families: Families) -> None:
    stock = families(name).stock
    spec = survey(stock).describe(stock, name="base", digest="d", source="here")
    linears = {
        path: module for path, module in stock.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)
    }
    assert spec.linears.keys() == linears.keys()
    for path, linear in spec.linears.items():
        weight = linears[path].weight
        shape = weight.shape[::-1] if isinstance(linears[path], Conv1D) else weight.shape
        assert (linear.name, linear.out_features, linear.in_features) == (path, *shape)
    assert spec.other_modules == {path for path, _ in stock.named_modules() if path} - linears.keys()
    assert (spec.name, spec.digest, spec.source) == ("base", "d", "here")
    assert spec.tied_head == stock.config.tie_word_embeddings


@pytest.mark.parametrize("name", GROUPS)
def test_layers_that_share_an_input_form_a_group(name: str, families: Families) -> None:
    groups = families(name).model.batch.groups
    per_layer = GROUPS[name]
    short = [tuple(path.rpartition(".")[2] for path in group) for group in groups]
    layers = families(name).stock.config.num_hidden_layers
    assert short == [*(per_layer * layers), ("lm_head",)]
    assert all(len({path.rpartition(".")[0] for path in group}) == 1 for group in groups)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_attaching_keeps_names_weights_and_the_heads_place(name: str, families: Families) -> None:
    family = families(name)
    for path, layer in family.model.linears.items():
        stock = family.stock.get_submodule(path)
        weight = stock.weight.t() if isinstance(stock, Conv1D) else stock.weight
        assert family.model.model.get_submodule(path) is layer
        assert torch.equal(layer.weight, weight)
        assert layer.on_logits == (path == "lm_head")
        group = family.model.batch.groups[layer.group]
        assert group[layer.member] == path


def test_the_probe_is_answered_by_the_stock_model(families: Families) -> None:
    stock = families("llama").stock
    seen = survey(stock)
    assert seen.probe.shape == (PROBE_TOKENS,)
    assert seen.logits.shape == (VOCAB,)
    with torch.inference_mode():
        expected = stock(input_ids=seen.probe[None]).logits[0, -1]
    assert torch.allclose(seen.logits, expected, atol=1e-5)


def test_leaves_the_model_as_it_was(families: Families) -> None:
    stock = families("qwen2").stock
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    survey(stock)
    assert all(torch.equal(before[name], tensor) for name, tensor in stock.state_dict().items())
    assert not any(module._forward_pre_hooks for module in stock.modules())


class _Twice(torch.nn.Linear):
    """A subclass is something else than a linear map."""


def test_a_layer_called_twice_or_of_a_foreign_type_carries_no_adapter(families: Families) -> None:
    stock = copy.deepcopy(families("llama").stock)
    mlp = stock.model.layers[0].mlp
    inner = mlp.down_proj
    mlp.down_proj = torch.nn.Sequential(torch.nn.Linear(80, 80), inner)
    mlp.up_proj.__class__ = _Twice
    gate = stock.model.layers[1].mlp.gate_proj
    stock.model.layers[2].mlp.gate_proj = gate
    seen = {linear.name for linear in survey(stock.eval()).seen}
    assert "model.layers.0.mlp.up_proj" not in seen
    assert {"model.layers.0.mlp.down_proj.0", "model.layers.0.mlp.down_proj.1"} <= seen
    assert not {"model.layers.1.mlp.gate_proj", "model.layers.2.mlp.gate_proj"} & seen


def _chosen(device: torch.device, dtype: torch.dtype) -> type:
    return type(choose_batch([("m",)], {"m": LinearSpec("m", 4, 4)}, dtype, device, BatchSizes()))


@pytest.mark.skipif(library() is None, reason="no compiler")
def test_native_products_serve_the_cpu() -> None:
    cpu = torch.device("cpu")
    chosen = [_chosen(cpu, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    assert chosen == [NativeBatch, NativeBatch, PlainBatch]


def test_kernels_serve_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.batch.survey.has_kernels", lambda device: True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert _chosen(DEVICE, dtype) is CudaBatch
