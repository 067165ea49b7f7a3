"""BEFT against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import BeftConfig

from adapters.checkpoint.variants import beft
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, read, save


def test_every_field_is_in_one_table() -> None:
    check_tables(beft, BeftConfig)


def test_layers_with_biases(opt: Any, tmp_path: Path) -> None:
    files = save(opt, tmp_path, BeftConfig(target_modules=["v_proj", "fc1"]))
    check(beft, opt, files, rank=0)
    name = "model.decoder.layers.0.fc1.beft_bias"
    files.tensors[name] = files.tensors[name][:, :5]
    with pytest.raises(InvalidAdapter, match=r"fc1.beft_bias' has shape \(1, 5\); the base needs \(1, 80\)"):
        read(beft, opt, files)


@pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias")
def test_layers_without(llama: Any, tmp_path: Path) -> None:
    check(beft, llama, save(llama, tmp_path, BeftConfig(target_modules=["q_proj", "down_proj"])), rank=0)
