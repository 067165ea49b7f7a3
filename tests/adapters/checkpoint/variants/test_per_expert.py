"""Adapters of each expert's own layers, as transformers 4 had them, against PEFT's conversion of the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.errors import InvalidAdapter
from tests.adapters.batch.test_experts import difference, mixed_logits
from tests.kit import Families, Family, full_logits, prompts

EXPERTS = 4
# For each family: where its experts were, their layers with the widths, its router.
MIXTRAL = ("block_sparse_moe", {"w1": (48, 80), "w2": (80, 48), "w3": (48, 80)})
QWEN = ("mlp", {"gate_proj": (48, 40), "up_proj": (48, 40), "down_proj": (40, 48)})
OLD = {"mixtral": MIXTRAL, "qwen3_moe": QWEN}
LAYERS = {"mixtral": (0, 1, 2), "qwen3_moe": (0, 2)}  # the others are dense


def write(
    family: Family,
    name: str,
    *,
    projections: tuple[str, ...] | None = None,
    change: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
    **fields: Any,
) -> Path:
    """A folder as PEFT wrote it on transformers 4, with random factors."""
    place, widths = OLD[family.name]
    chosen = tuple(widths) if projections is None else projections
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q_proj", *([] if projections else ["gate"]), *chosen],
        **fields,
    }
    generator = torch.Generator().manual_seed(sum(name.encode()))
    tensors: dict[str, Tensor] = {}

    def add(module: str, inputs: int, outputs: int) -> None:
        for part, shape in (("A", (3, inputs)), ("B", (outputs, 3))):
            key = f"base_model.model.{module}.lora_{part}.weight"
            tensors[key] = 0.25 * torch.randn(shape, generator=generator)

    for layer in range(3):
        query = family.stock.get_submodule(f"model.layers.{layer}.self_attn.q_proj")
        add(f"model.layers.{layer}.self_attn.q_proj", query.in_features, query.out_features)
    for layer in LAYERS[family.name]:
        if projections is None:
            add(f"model.layers.{layer}.{place}.gate", 48, EXPERTS)
        for expert in range(EXPERTS):
            for projection in chosen:
                add(f"model.layers.{layer}.{place}.experts.{expert}.{projection}", *widths[projection])
    change(tensors)
    folder = family.folder / name
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def add_dense(tensors: dict[str, Tensor]) -> None:
    """The layers of Qwen3-MoE's dense block, which `target_modules` names too."""
    for projection, (inputs, outputs) in {"gate_proj": (48, 80), "up_proj": (48, 80)}.items():
        for part, shape in (("A", (3, inputs)), ("B", (outputs, 3))):
            tensors[f"base_model.model.model.layers.1.mlp.{projection}.lora_{part}.weight"] = torch.zeros(
                shape
            )
    for part, shape in (("A", (3, 80)), ("B", (48, 3))):
        tensors[f"base_model.model.model.layers.1.mlp.down_proj.lora_{part}.weight"] = torch.zeros(shape)


@pytest.mark.parametrize("name", list(OLD))
def test_they_are_applied_as_peft_applies_them(name: str, families: Families) -> None:
    family = families(name)
    write(family, "old", change=add_dense if name == "qwen3_moe" else lambda tensors: None)
    company = list(zip(["old", None, "attention", "old"], prompts(9, 5, 4, 3), strict=True))
    for (adapter, tokens), got in zip(company, mixed_logits(family, company), strict=True):
        assert difference(got, full_logits(family.oracle(adapter), tokens)) < 1e-5
    records = family.weights("old").experts
    assert len(records) == 3 * len(LAYERS[name])
    assert {record.a.shape[1] for parameter, record in records.items() if "gate_up" in parameter} == {6}


def test_each_part_acts_on_its_own_expert(families: Families) -> None:
    """Told without PEFT: the joined product is each layer's own one, in its rows."""
    family = families("mixtral")
    tensors = load_file(write(family, "own") / WEIGHTS_FILE)
    record = family.weights("own").experts["model.layers.1.mlp.experts.gate_up_proj"]
    for expert in range(EXPERTS):
        joined = record.scale * record.b[expert] @ record.a[expert]
        for projection, rows in (("w1", slice(0, 80)), ("w3", slice(80, 160))):
            key = f"base_model.model.model.layers.1.block_sparse_moe.experts.{expert}.{projection}"
            delta = 2.0 * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
            assert torch.allclose(joined[rows], delta, atol=1e-6)


def _drop(ending: str) -> Callable[[dict[str, Tensor]], object]:
    def drop(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if ending in key]:
            del tensors[key]

    return drop


def _magnitude(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if key.endswith("lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight")
        tensors[f"{module}.lora_magnitude_vector"] = torch.ones(len(tensors[f"{module}.lora_B.weight"]))


def _reshape(tensors: dict[str, Tensor]) -> None:
    key = "base_model.model.model.layers.0.block_sparse_moe.experts.2.w3.lora_A.weight"
    tensors[key] = tensors[key][:, 1:].contiguous()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one-part": ({"projections": ("w1", "w2")}, r"experts.0.w1, but not for .*experts.0.w3"),
    "an-expert-missing": (
        {"change": _drop("layers.1.block_sparse_moe.experts.2.w2")},
        r"experts.2.w2, but the",
    ),
    "a-layer-missing": (
        {"change": _drop("layers.2.block_sparse_moe.experts")},
        r"layers.2.*but the weights hold",
    ),
    "not-targeted": (
        {"target_modules": ["q_proj", "gate", "w1", "w3"]},
        r"w2, which adapter_config.json does",
    ),
    "dora": ({"change": _magnitude, "use_dora": True}, r"can have lora_A and lora_B only"),
    "rslora": (
        {"use_rslora": True},
        r"use_rslora: once gate and up projections of experts are one .*sqrt\(2\)",
    ),
    "ranks": (
        {"alpha_pattern": {"experts.1.w1": 5}},
        r"rank_pattern or alpha_pattern tells .*experts.1.w1 from .*experts.0.w1",
    ),
    "shape": ({"change": _reshape}, r"experts.2.w3.lora_A.weight' has shape \(3, 47\)"),
    "pissa": ({"init_lora_weights": "pissa"}, r"on experts is not supported"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_does_not_fit_is_named(case: str, families: Families) -> None:
    family = families("mixtral")
    fields, message = WRONG[case]
    write(family, f"wrong-{case}", **fields)
    with pytest.raises(InvalidAdapter, match=message):
        family.weights(f"wrong-{case}")


def test_an_adapter_of_experts_does_not_fit_a_dense_base(families: Families) -> None:
    folder = write(families("mixtral"), "elsewhere")
    dense = families("llama")
    dense.folder.mkdir(exist_ok=True)
    (dense.folder / "elsewhere").symlink_to(folder)
    with pytest.raises(InvalidAdapter, match=r"made for another base|no such module"):
        dense.weights("elsewhere")
