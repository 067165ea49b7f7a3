"""DoRA, IA3 and an adapter's own biases answer as in PEFT: among plain adapters and the base, and merged."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from adapters.delta import AdapterWeights, ModuleDelta
from adapters.merge import build_merged
from server.engine.base import ServedModel
from tests.kit import Families, Family, ask, engine_core, full_logits, prompts, run_all
from tests.tiny import greedy

PROMPTS = prompts(5, 23, 9, 14, 7)
TOKENS = 10
NAMES = ["llama", "qwen2", "gpt2"]
FEEDFORWARD = {"gpt2": "mlp.c_proj"}


def _folder(family: Family, name: str, config: Any) -> Path:
    """A PEFT folder whose trained parameters are all random."""
    folder = family.folder / name
    if not folder.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fan_in_fan_out, and the base's config on the hub
            wrapped = peft.get_peft_model(copy.deepcopy(family.stock), config)
            generator = torch.Generator().manual_seed(7)
            for key, parameter in wrapped.named_parameters():
                if "lora_A" in key or "lora_B" in key:
                    parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 4)
                elif "lora_magnitude" in key or "ia3" in key:
                    parameter.data.mul_(1 + torch.randn(parameter.shape, generator=generator) / 4)
            wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def _weight(family: Family, name: str) -> torch.Tensor:
    weight: torch.Tensor = family.stock.get_submodule(name).weight
    return weight.t() if family.name == "gpt2" else weight


def dora(family: Family) -> AdapterWeights:
    """`m (W x + s B A x) + b` with `m = magnitude / ||W + s B A||` by rows."""
    folder = _folder(family, "dora", peft.LoraConfig(r=4, use_dora=True, target_modules="all-linear"))
    config, tensors = json.loads((folder / "adapter_config.json").read_text()), _tensors(folder)
    scale, deltas = config["lora_alpha"] / config["r"], {}
    for name in family.model.spec.linears:
        if f"{name}.lora_A.weight" in tensors:
            a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            norm = (_weight(family, name) + scale * b @ a).norm(dim=1)
            m = tensors[f"{name}.lora_magnitude_vector"] / norm
            bias = getattr(family.stock.get_submodule(name), "bias", None)
            shift = None if bias is None else (1 - m) * bias
            deltas[name] = ModuleDelta(a, m[:, None] * b, scale, m, shift)
    return AdapterWeights("dora", deltas)


def ia3(family: Family) -> AdapterWeights:
    """Vectors on outputs, and on the inputs of one layer of each block."""
    inner = FEEDFORWARD.get(family.name, "down_proj")
    targets = ["c_attn", inner] if family.name == "gpt2" else ["k_proj", "v_proj", inner]
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=[inner])
    deltas = {}
    for key, vector in _tensors(_folder(family, "ia3", config)).items():
        name = key.removesuffix(".ia3_l")
        shape = family.model.spec.linears[name]
        none = ModuleDelta(torch.empty(0, shape.in_features), torch.empty(shape.out_features, 0), 1.0)
        own = vector.flatten().contiguous()
        scaled = replace(none, input_scale=own) if name.endswith(inner) else replace(none, magnitude=own)
        deltas[name] = scaled
    return AdapterWeights("ia3", deltas)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    stored = load_file(folder / "adapter_model.safetensors")
    return {key.removeprefix("base_model.model."): tensor for key, tensor in stored.items()}


READ: dict[str, Callable[[Family], AdapterWeights]] = {"dora": dora, "ia3": ia3}


def _load(family: Family) -> Callable[[str], AdapterWeights]:
    return lambda digest: READ[digest](family) if digest in READ else family.weights(digest)


@pytest.mark.parametrize("form", ["native", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_with_plain_adapters_and_the_base(name: str, form: str, families: Families) -> None:
    family = families(name)
    for read in READ.values():
        read(family)
    owners = ["dora", "ia3", None, "all", "dora"]
    requests = [ask(str(i), PROMPTS[i], owner, max_tokens=TOKENS) for i, owner in enumerate(owners)]
    model = family.model if form == "native" else family.plain
    with engine_core(family, load=_load(family), model=model, prefill=20) as core:
        answers = run_all(core, requests)
    for i, owner in enumerate(owners):
        assert answers[str(i)].tokens == family.expected(owner, PROMPTS[i], TOKENS), owner
        assert owner is None or answers[str(i)].tokens != family.expected(None, PROMPTS[i], TOKENS)


@pytest.mark.parametrize("adapter", READ)
@pytest.mark.parametrize("name", NAMES)
def test_merged(name: str, adapter: str, families: Families) -> None:
    family = families(name)
    weights = READ[adapter](family)
    model = ServedModel(copy.deepcopy(family.stock), name="base", digest="d")
    before = model.checksum()
    build_merged(model.linears.values(), weights)
    for layer in model.linears.values():  # the oracle's weights, from ours
        assert (layer.merged is not None) is (layer.name in weights.deltas)
    with engine_core(family, load=_load(family), model=model) as core:
        core.runner.merged_digest = adapter
        answers = run_all(core, [ask("m", PROMPTS[0], adapter, max_tokens=TOKENS)])
        assert core.model.batch.use_merged
    assert answers["m"].tokens == family.expected(adapter, PROMPTS[0], TOKENS)
    assert model.checksum() == before


def test_the_oracles_differ_from_the_base(families: Families) -> None:
    family = families("llama")
    base = full_logits(family.stock, PROMPTS[1])
    for name, read in READ.items():
        read(family)
        assert not torch.allclose(full_logits(family.oracle(name), PROMPTS[1]), base, atol=0.1)
        assert greedy(family.oracle(name), PROMPTS[1], 3)
