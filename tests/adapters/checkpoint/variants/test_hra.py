"""HRA against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import HRAConfig

from adapters.checkpoint.variants import hra
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, read, save


def test_every_field_is_in_one_table() -> None:
    check_tables(hra, HRAConfig)


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("r", [1, 5])
def test_linear_layers(llama: Any, tmp_path: Path, orthogonal: bool, r: int) -> None:
    config = HRAConfig(r=r, apply_GS=orthogonal, init_weights=False, target_modules=["q_proj", "down_proj"])
    check(hra, llama, save(llama, tmp_path, config), rank=r)


def test_layers_with_biases(opt: Any, tmp_path: Path) -> None:
    check(hra, opt, save(opt, tmp_path, HRAConfig(r=4, target_modules=["fc1", "v_proj"])), rank=4)


def test_a_vector_without_a_direction_is_refused(llama: Any, tmp_path: Path) -> None:
    files = save(llama, tmp_path, HRAConfig(r=2, target_modules=["q_proj"]))
    files.tensors["model.layers.0.self_attn.q_proj.hra_u"].zero_()
    with pytest.raises(
        InvalidAdapter, match=r"the update of model\.layers\.0\.self_attn\.q_proj is NaN or infinity"
    ):
        read(hra, llama, files)
