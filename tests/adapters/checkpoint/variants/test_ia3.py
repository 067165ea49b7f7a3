"""(IA)^3 against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import IA3Config

from adapters.checkpoint.variants import ia3
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, read, save


def test_every_field_is_in_one_table() -> None:
    check_tables(ia3, IA3Config)


def test_inputs_of_feedforward_modules_and_outputs_of_others(llama: Any, tmp_path: Path) -> None:
    config = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    files = save(llama, tmp_path, config)
    records = check(ia3, llama, files, rank=0)
    down, key = records["model.layers.0.mlp.down_proj"], records["model.layers.0.self_attn.k_proj"]
    assert down.input_scale is not None
    assert down.magnitude is None
    assert key.magnitude is not None
    assert key.input_scale is None
    with pytest.raises(
        InvalidAdapter, match=r"down_proj.ia3_l' has shape \(1, 80\); the base needs \(48, 1\)"
    ):
        read(ia3, llama, files, feedforward_modules=[])
    with pytest.raises(InvalidAdapter, match="feedforward_modules is missing; name them"):
        read(ia3, llama, files, feedforward_modules=None)


@pytest.mark.parametrize("feedforward", [["mlp.c_proj"], r".*\.mlp\.c_proj", []])
def test_conv1d_with_biases(gpt2: Any, tmp_path: Path, feedforward: Any) -> None:
    config = IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=feedforward)
    check(ia3, gpt2, save(gpt2, tmp_path, config), rank=0)


def test_defaults_of_peft_for_a_known_model(opt: Any, tmp_path: Path) -> None:
    check(ia3, opt, save(opt, tmp_path, IA3Config(task_type="CAUSAL_LM")), rank=0)
