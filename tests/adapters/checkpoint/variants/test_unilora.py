"""Uni-LoRA against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import UniLoraConfig

from adapters.checkpoint.variants import unilora
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, describe, read, save, weights_of

TARGETS = ["q_proj", "v_proj", "down_proj"]


def test_every_field_is_in_one_table() -> None:
    check_tables(unilora, UniLoraConfig)


@pytest.mark.parametrize("save_indices", [False, True])
@pytest.mark.parametrize("length", [50, 5000])  # 5000 are more than there are entries
def test_linear_layers(llama: Any, tmp_path: Path, save_indices: bool, length: int) -> None:
    config = UniLoraConfig(
        r=3, theta_d_length=length, proj_seed=7, save_indices=save_indices, target_modules=TARGETS
    )
    check(unilora, llama, save(llama, tmp_path, config), rank=3)


def test_conv1d(gpt2: Any, tmp_path: Path) -> None:
    check(unilora, gpt2, save(gpt2, tmp_path, UniLoraConfig(target_modules=["c_attn", "c_fc"])), rank=4)


def test_refusals(llama: Any, tmp_path: Path) -> None:
    files = save(llama, tmp_path, UniLoraConfig(save_indices=True, target_modules=TARGETS))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"save_indices": False}, "unilora_indices_A' is not used with save_indices=false; set it to true"),
        ({"theta_d_length": 99}, r"unilora_theta_d' has shape \(256\); the base needs \(99\)"),
        ({"target_modules": ["q_proj"]}, "which adapter_config.json does not target"),
    ]
    for changed, message in refused:
        with pytest.raises(InvalidAdapter, match=message):
            read(unilora, llama, files, **changed)
    only = {"unilora_theta_d": files.tensors["unilora_theta_d"]}
    raw = files.raw | {"save_indices": False, "proj_seed": None}
    with pytest.raises(InvalidAdapter, match="proj_seed must be an integer from 0"):
        unilora.records(raw, only, describe(llama), weights_of(llama))
    name = "model.layers.0.mlp.down_proj.unilora_indices_B"
    files.tensors[name][0, 0] = -1
    with pytest.raises(InvalidAdapter, match=f"tensor '{name}' points outside the 256 entries"):
        read(unilora, llama, files)
