"""DeLoRA against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import DeloraConfig

from adapters.checkpoint.variants import delora
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, describe, read, save, weights_of


def test_every_field_is_in_one_table() -> None:
    check_tables(delora, DeloraConfig)


def test_linear_layers(llama: Any, tmp_path: Path) -> None:
    config = DeloraConfig(
        r=4, delora_lambda=3, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2}
    )
    files = save(llama, tmp_path, config)
    records = check(delora, llama, files)
    assert {record.rank for record in records.values()} == {2, 4}
    with pytest.raises(
        InvalidAdapter, match=r"q_proj.delora_A' has shape \(4, 48\); the base needs \(5, 48\)"
    ):
        read(delora, llama, files, r=5)
    missing = "model.layers.0.self_attn.q_proj.delora_w_norm"
    with pytest.raises(InvalidAdapter, match=f"hold no tensor '{missing}'"):
        delora.records(files.raw, files.without(missing), describe(llama), weights_of(llama))


def test_layers_with_biases(opt: Any, tmp_path: Path) -> None:
    config = DeloraConfig(r=3, target_modules=["fc1", "v_proj"], lambda_pattern={"fc1": 2})
    check(delora, opt, save(opt, tmp_path, config), rank=3)


def test_a_term_of_length_zero_adds_nothing(llama: Any, tmp_path: Path) -> None:
    files = save(llama, tmp_path, DeloraConfig(r=2, target_modules=["q_proj"]))
    for name, tensor in files.tensors.items():
        if name.endswith("delora_B"):
            tensor.zero_()
    assert all(not record.b.any() for record in read(delora, llama, files).values())
