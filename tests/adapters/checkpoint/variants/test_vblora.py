"""VB-LoRA against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import VBLoRAConfig

from adapters.checkpoint.variants import vblora
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, read, save

SIZES: dict[str, Any] = {"r": 3, "num_vectors": 20, "vector_length": 8}


def test_every_field_is_in_one_table() -> None:
    check_tables(vblora, VBLoRAConfig)


@pytest.mark.parametrize("topk", [1, 3])
@pytest.mark.parametrize("only_topk", [False, True])
def test_linear_layers(llama: Any, tmp_path: Path, topk: int, only_topk: bool) -> None:
    config = VBLoRAConfig(
        target_modules=["q_proj", "down_proj"], topk=topk, save_only_topk_weights=only_topk, **SIZES
    )
    check(vblora, llama, save(llama, tmp_path, config), rank=3)


def test_conv1d(gpt2: Any, tmp_path: Path) -> None:
    check(
        vblora, gpt2, save(gpt2, tmp_path, VBLoRAConfig(target_modules=["c_attn", "c_fc"], **SIZES)), rank=3
    )


def test_refusals(llama: Any, tmp_path: Path) -> None:
    files = save(
        llama, tmp_path, VBLoRAConfig(target_modules=["q_proj"], save_only_topk_weights=True, **SIZES)
    )
    refused: list[tuple[dict[str, Any], str]] = [
        ({"vector_length": 16}, r"vblora_vector_bank' has shape \(20, 8\); the base needs \(20, 16\)"),
        ({"topk": 21}, "topk 21 is over num_vectors 20"),
        (
            {"save_only_topk_weights": False},
            "unknown tensor 'model.layers.0.self_attn.q_proj.vblora_logits_A_topk",
        ),
    ]
    for changed, message in refused:
        with pytest.raises(InvalidAdapter, match=message):
            read(vblora, llama, files, **changed)
    name = "model.layers.1.self_attn.q_proj.vblora_logits_B_topk_indices"
    files.tensors[name][0] = 20
    with pytest.raises(InvalidAdapter, match=f"tensor '{name}' points outside the 20 entries of its table"):
        read(vblora, llama, files)


def test_a_vector_length_that_does_not_divide_is_refused(llama: Any, tmp_path: Path) -> None:
    files = save(llama, tmp_path, VBLoRAConfig(target_modules=["q_proj"], **SIZES))
    files.tensors["vblora_vector_bank"] = files.tensors["vblora_vector_bank"][:, :7]
    with pytest.raises(
        InvalidAdapter, match="vector_length 7 does not divide the inputs and outputs of model"
    ):
        read(vblora, llama, files, vector_length=7)
