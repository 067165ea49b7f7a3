"""DEFT against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import DeftConfig

from adapters.checkpoint.variants import deft
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, read, save


def test_every_field_is_in_one_table() -> None:
    check_tables(deft, DeftConfig)


@pytest.mark.parametrize("method", ["relu", "qr"])
@pytest.mark.parametrize("para", [False, True])
def test_linear_layers(llama: Any, tmp_path: Path, method: str, para: bool) -> None:
    config = DeftConfig(
        r=3,
        alpha=None if para else 5,
        decomposition_method=method,
        para=para,
        target_modules=["q_proj", "up_proj"],
    )
    check(deft, llama, save(llama, tmp_path, config), rank=3)


def test_conv1d(gpt2: Any, tmp_path: Path) -> None:
    check(deft, gpt2, save(gpt2, tmp_path, DeftConfig(r=4, target_modules=["c_attn", "c_fc"])), rank=4)


def test_refusals(llama: Any, tmp_path: Path) -> None:
    files = save(llama, tmp_path, DeftConfig(r=2, target_modules=["q_proj"]))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"decomposition_method": "svd"}, 'decomposition_method must be "relu" or "qr", not \'svd\''),
        ({"para": True}, "unknown tensor 'model.layers.0.self_attn.q_proj.deft_R'"),
        ({"alpha": "x"}, "alpha must be a finite number"),
    ]
    for changed, message in refused:
        with pytest.raises(InvalidAdapter, match=message):
            read(deft, llama, files, **changed)
