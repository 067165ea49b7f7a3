"""VeRA against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import VeraConfig

from adapters.checkpoint.variants import vera
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import (
    Files,
    check,
    check_tables,
    describe,
    read,
    save,
    weights_of,
)

LLAMA = ["q_proj", "k_proj", "gate_proj", "down_proj"]


@pytest.fixture(scope="module")
def files(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return save(llama, tmp_path_factory.mktemp("vera"), VeraConfig(r=6, target_modules=LLAMA))


def test_every_field_is_in_one_table() -> None:
    check_tables(vera, VeraConfig)


def test_linear_layers_of_several_shapes(llama: Any, files: Files) -> None:
    check(vera, llama, files, rank=6)


def test_conv1d(gpt2: Any, tmp_path: Path) -> None:
    check(vera, gpt2, save(gpt2, tmp_path, VeraConfig(r=5, target_modules=["c_attn", "mlp.c_proj"])), rank=5)


@pytest.mark.filterwarnings("ignore:Specified to not save")
def test_projections_that_are_not_saved_are_made_as_peft_makes_them(llama: Any, tmp_path: Path) -> None:
    targets = ["q_proj", "down_proj"]  # the widest input and output differ: a swap would show
    config = VeraConfig(r=6, target_modules=targets, save_projection=False, projection_prng_key=1234)
    files = save(llama, tmp_path, config)
    assert "vera_A" not in files.tensors
    check(vera, llama, files, rank=6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("save_projection", False, "tensor 'vera_A' is not used with save_projection=false; set it to true"),
        ("r", 5, r"vera_lambda_d' has shape \(6\); the base needs \(5\)"),
        ("r", 0, "r must be an integer of at least 1, not 0"),
        ("save_projection", "no", "save_projection must be true or false, not 'no'"),
    ],
)
def test_what_does_not_fit_is_refused(llama: Any, files: Files, field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        read(vera, llama, files, **{field: value})


def test_a_missing_tensor_is_named(llama: Any, files: Files) -> None:
    name = "model.layers.1.self_attn.q_proj.vera_lambda_b"
    for missing in ("vera_B", name):
        with pytest.raises(InvalidAdapter, match=f"hold no tensor '{missing}'; the file is incomplete"):
            vera.records(files.raw, files.without(missing), describe(llama), weights_of(llama))


def test_a_seed_must_be_one(llama: Any, files: Files) -> None:
    own = {name: tensor for name, tensor in files.tensors.items() if name not in ("vera_A", "vera_B")}
    raw = files.raw | {"save_projection": False, "projection_prng_key": -1}
    with pytest.raises(InvalidAdapter, match="projection_prng_key must be an integer from 0 to"):
        vera.records(raw, own, describe(llama), weights_of(llama))
