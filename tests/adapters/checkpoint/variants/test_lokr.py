"""LoKr against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoKrConfig
from peft.tuners.lokr.layer import factorization

from adapters.checkpoint.variants import lokr
from adapters.errors import AdapterTooLarge, InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import check, check_tables, describe, read, save, weights_of

TARGETS = ["q_proj", "k_proj", "up_proj", "down_proj"]


def test_every_field_is_in_one_table() -> None:
    check_tables(lokr, LoKrConfig)


@pytest.mark.parametrize("factor", [-1, 2, 3, 5, 7, 30, 48, 100])
def test_sizes_are_split_as_peft_splits_them(factor: int) -> None:
    assert all(lokr.split(size, factor) == factorization(size, factor) for size in range(1, 300))


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({"r": 2}, None),  # the first matrix whole, the second in factors
        ({"r": 64}, None),  # both whole
        ({"r": 2, "decompose_both": True}, 4),  # both in factors
        ({"r": 2, "decompose_factor": 4, "alpha": 3}, 8),
        ({"r": 2, "rank_pattern": {"k_proj": 1}, "alpha_pattern": {"down_proj": 20}}, None),
    ],
)
def test_linear_layers(llama: Any, tmp_path: Path, config: dict[str, Any], rank: int | None) -> None:
    check(lokr, llama, save(llama, tmp_path, LoKrConfig(target_modules=TARGETS, **config)), rank=rank)


def test_layers_with_biases(opt: Any, tmp_path: Path) -> None:
    check(lokr, opt, save(opt, tmp_path, LoKrConfig(r=3, target_modules=["fc1", "fc2"])))


def test_refusals(llama: Any, tmp_path: Path) -> None:
    files = save(llama, tmp_path, LoKrConfig(r=2, target_modules=TARGETS))
    with pytest.raises(AdapterTooLarge, match=r"has rank 12 \(LoKr with r = 2 and decompose_factor = -1\)"):
        lokr.records(files.raw, files.tensors, describe(llama), weights_of(llama), max_rank=8)
    with pytest.raises(
        InvalidAdapter, match="decompose_factor must be -1 or an integer of at least 1, not 0"
    ):
        read(lokr, llama, files, decompose_factor=0)
    with pytest.raises(InvalidAdapter, match="lokr_w1' does not belong to LoKr with this config"):
        read(lokr, llama, files, decompose_both=True)
    with pytest.raises(InvalidAdapter, match=r"lokr_w1' has shape \(6, 8\); the base needs \(4, 4\)"):
        read(lokr, llama, files, decompose_factor=4)
