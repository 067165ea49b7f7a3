"""LoHa against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoHaConfig

from adapters.checkpoint.variants import loha
from adapters.errors import AdapterTooLarge, InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import (
    Files,
    check,
    check_tables,
    describe,
    read,
    save,
    weights_of,
)


@pytest.fixture(scope="module")
def files(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Files:
    config = LoHaConfig(
        r=3,
        alpha=5,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"v_proj": 2},
        alpha_pattern={"layers.1.mlp.down_proj": 7},
    )
    return save(llama, tmp_path_factory.mktemp("loha"), config)


def test_every_field_is_in_one_table() -> None:
    check_tables(loha, LoHaConfig)


def test_rank_is_the_square_of_r(llama: Any, files: Files) -> None:
    records = check(loha, llama, files)
    assert records["model.layers.0.self_attn.q_proj"].rank == 9
    assert records["model.layers.0.self_attn.v_proj"].rank == 4
    assert records["model.layers.1.mlp.down_proj"].scale == 7 / 3


def test_layers_with_biases(opt: Any, tmp_path: Path) -> None:
    check(loha, opt, save(opt, tmp_path, LoHaConfig(r=2, target_modules=["fc1", "out_proj"])), rank=4)


def test_a_square_over_the_limit_is_refused(llama: Any, files: Files) -> None:
    message = (
        r"down_proj has rank 9 \(r = 3, and LoHa needs its square\); the largest is 8; convert it with peft"
    )
    with pytest.raises(AdapterTooLarge, match=message):
        loha.records(files.raw, files.tensors, describe(llama), weights_of(llama), max_rank=8)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("r", 4, r"hada_w1_a' has shape \(48, 3\); the base needs \(48, 4\)"),
        ("alpha", "x", "alpha must be a finite number, not 'x'"),
        ("rank_pattern", {"v_proj": 0}, "must be an integer of at least 1, not 0"),
    ],
)
def test_what_does_not_fit_is_refused(llama: Any, files: Files, field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        read(loha, llama, files, **{field: value})


def test_an_unknown_tensor_is_named(llama: Any, files: Files) -> None:
    name = "model.layers.0.self_attn.q_proj.hada_t1"
    tensors = files.tensors | {name: files.tensors["model.layers.0.self_attn.q_proj.hada_w1_a"]}
    with pytest.raises(InvalidAdapter, match=f"unknown tensor '{name}'"):
        loha.records(files.raw, tensors, describe(llama), weights_of(llama))
