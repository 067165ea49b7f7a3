"""MiSS against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import MissConfig

from adapters.checkpoint.variants import miss
from adapters.errors import InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, read, save


def test_every_field_is_in_one_table() -> None:
    check_tables(miss, MissConfig)


@pytest.mark.parametrize("r", [4, 7])  # 7 does not divide the inputs
@pytest.mark.parametrize("init", [True, False])
def test_linear_layers(llama: Any, tmp_path: Path, r: int, init: bool) -> None:
    config = MissConfig(r=r, target_modules=["q_proj", "down_proj"], init_weights=init)
    check(miss, llama, save(llama, tmp_path, config), rank=r)


def test_mini(opt: Any, tmp_path: Path) -> None:
    config = MissConfig(r=4, mini_r=8, target_modules=["fc1", "fc2"], init_weights="mini")
    files = save(opt, tmp_path, config)
    check(miss, opt, files, rank=4)
    with pytest.raises(InvalidAdapter, match="mini_r 7 does not divide the 80 outputs of model"):
        read(miss, opt, files, mini_r=7)
    with pytest.raises(InvalidAdapter, match='init_weights must be true, false or "mini", not 3'):
        read(miss, opt, files, init_weights=3)


def test_bat_has_full_rank(llama: Any, tmp_path: Path) -> None:
    files = save(llama, tmp_path, MissConfig(r=4, target_modules=["q_proj"], init_weights="bat"))
    with pytest.raises(InvalidAdapter, match='init_weights "bat" gives an update of full rank; merge it'):
        read(miss, llama, files)
