"""TinyLoRA against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import TinyLoraConfig

from adapters.checkpoint.variants import tinylora
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, describe, read, save, weights_of

TARGETS = ["q_proj", "down_proj"]


def test_every_field_is_in_one_table() -> None:
    check_tables(tinylora, TinyLoraConfig)


@pytest.mark.parametrize("tying", [0.0, 0.5, 1.0])
def test_linear_layers_that_share_vectors(llama: Any, tmp_path: Path, tying: float) -> None:
    files = save(llama, tmp_path, TinyLoraConfig(r=3, u=5, weight_tying=tying, target_modules=TARGETS))
    assert sum("tinylora_v." in name for name in files.tensors) == max(1, round(6 * (1 - tying)))
    check(tinylora, llama, files, rank=3)


def test_conv1d(gpt2: Any, tmp_path: Path) -> None:
    check(
        tinylora, gpt2, save(gpt2, tmp_path, TinyLoraConfig(u=5, target_modules=["c_attn", "c_fc"])), rank=2
    )


def test_refusals(llama: Any, tmp_path: Path) -> None:
    files = save(llama, tmp_path, TinyLoraConfig(u=5, target_modules=TARGETS))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"save_projection": False}, "save_projection false leaves out random matrices that differ"),
        ({"weight_tying": 2}, "weight_tying must be from 0 to 1, not 2"),
        (
            {"weight_tying": 0.5},
            "tensor 'tinylora_v.3' is of no module with this config; correct weight_tying",
        ),
        ({"u": 4}, r"tinylora_P' has shape \(5, 2, 2\); the base needs \(4, 2, 2\)"),
    ]
    for changed, message in refused:
        with pytest.raises(InvalidAdapter, match=message):
            read(tinylora, llama, files, **changed)
    with pytest.raises(InvalidAdapter, match=r"hold no tensor 'tinylora_v\.3'; the file is incomplete"):
        tinylora.records(files.raw, files.without("tinylora_v.3"), describe(llama), weights_of(llama))
