"""GraLoRA against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import GraloraConfig

from adapters.checkpoint.variants import gralora
from adapters.errors import AdapterTooLarge, InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, describe, read, save, weights_of


def test_every_field_is_in_one_table() -> None:
    check_tables(gralora, GraloraConfig)


@pytest.mark.parametrize(("k", "r", "hybrid", "rank"), [(2, 4, 0, 8), (4, 4, 3, 19), (1, 3, 0, 3)])
def test_linear_layers(llama: Any, tmp_path: Path, k: int, r: int, hybrid: int, rank: int) -> None:
    config = GraloraConfig(
        r=r, gralora_k=k, hybrid_r=hybrid, alpha=5, target_modules=["q_proj", "k_proj", "down_proj"]
    )
    check(gralora, llama, save(llama, tmp_path, config), rank=rank)


def test_conv1d(gpt2: Any, tmp_path: Path) -> None:
    config = GraloraConfig(r=6, gralora_k=3, hybrid_r=2, target_modules=["c_attn", "mlp.c_proj"])
    check(gralora, gpt2, save(gpt2, tmp_path, config), rank=20)


def test_refusals(llama: Any, tmp_path: Path) -> None:
    files = save(llama, tmp_path, GraloraConfig(r=4, gralora_k=2, target_modules=["q_proj"]))
    for changed, message in [
        ({"gralora_k": 3}, "gralora_k 3 does not divide r 4"),
        ({"hybrid_r": -1}, "hybrid_r must be an integer of at least 1, not -1"),
        ({"hybrid_r": 2}, "hold no tensor 'model.layers.0.self_attn.q_proj.gralora_A_general.weight'"),
        ({"r": 5, "gralora_k": 5}, "gralora_k 5 does not divide the inputs and outputs of model.layers.0"),
    ]:
        with pytest.raises(InvalidAdapter, match=message):
            read(gralora, llama, files, **changed)
    with pytest.raises(
        AdapterTooLarge, match=r"has rank 8 \(gralora_k = 2, r = 4, hybrid_r = 0\); the largest"
    ):
        gralora.records(files.raw, files.tensors, describe(llama), weights_of(llama), max_rank=7)
