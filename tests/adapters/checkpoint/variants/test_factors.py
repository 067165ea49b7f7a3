"""The steps that readers of tuners share."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from adapters.base import LinearSpec
from adapters.checkpoint.variants import factors
from adapters.errors import AdapterTooLarge, InvalidAdapter
from tests.adapters.checkpoint.variants.oracle import describe, weights_of

LINEAR = LinearSpec("fc", 3, 2)


def test_a_part_is_float32_and_has_its_shape() -> None:
    parts = {"a": torch.ones(2, 3, dtype=torch.bfloat16)}
    assert factors.part(parts, "fc", "a", (2, 3)).dtype == torch.float32
    with pytest.raises(InvalidAdapter, match=r"tensor 'fc\.a' has shape \(2, 3\); the base needs \(3, 2\)"):
        factors.part(parts, "fc", "a", (3, 2))
    with pytest.raises(InvalidAdapter, match=r"hold no tensor 'fc\.b'; the file is incomplete"):
        factors.part(parts, "fc", "b", (2, 3))
    with pytest.raises(InvalidAdapter, match="hold no tensor 'bank'; the file is incomplete"):
        factors.shared(parts, "bank")


def test_rows_of_a_table_are_integers_within_it() -> None:
    table, rows = torch.zeros(3, 2), torch.tensor([0, 2], dtype=torch.uint8)
    assert factors.indices({"i": rows}, "fc", "i", (2,), table).tolist() == [0, 2]
    assert factors.indices({"i": rows[:0]}, "fc", "i", (0,), table).tolist() == []
    for bad in (torch.tensor([0, 3]), torch.tensor([-1, 0])):
        with pytest.raises(InvalidAdapter, match=r"tensor 'fc\.i' points outside the 3 entries of its table"):
            factors.indices({"i": bad}, "fc", "i", (2,), table)
    with pytest.raises(InvalidAdapter, match=r"tensor 'fc\.i' must hold integers, not torch\.float32"):
        factors.indices({"i": rows.float()}, "fc", "i", (2,), table)


def test_the_first_pattern_that_matches_gives_the_rank() -> None:
    rank_of = factors.ranks({"r": 4, "rank_pattern": {"h.1.fc": 2, "fc": 3}}, 8)
    assert [rank_of(name) for name in ("h.1.fc", "h.0.fc", "proj")] == [2, 3, 4]
    assert factors.ranks({}, 8)("fc") == 8
    alpha_of = factors.alphas({"alpha": 2, "alpha_pattern": {"fc": 0.5}}, 8)
    assert [alpha_of(name) for name in ("fc", "proj")] == [0.5, 2]


def test_a_record_without_factors_has_rank_0() -> None:
    made = factors.record("fc", LINEAR, shift=torch.ones(4)[::2])
    assert (made.rank, tuple(made.a.shape), tuple(made.b.shape)) == (0, (0, 3), (2, 0))
    assert all(tensor.is_contiguous() for tensor in made.tensors())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_record_is_finite(value: float) -> None:
    with pytest.raises(InvalidAdapter, match="the update of fc is NaN or infinity; the training diverged"):
        factors.record("fc", LINEAR, magnitude=torch.tensor([1.0, value]))


@pytest.mark.parametrize("kind", ["deft", "hra", "miss", "pvera", "tinylora", "unilora", "vblora", "vera"])
def test_no_rank_over_the_limit_is_even_begun(kind: str, llama: Any) -> None:
    tuner = import_module(f"adapters.checkpoint.variants.{kind}")
    raw = {"peft_type": kind.upper(), "target_modules": ["q_proj"], "r": 10**12}
    with pytest.raises(AdapterTooLarge, match="json: r is 1000000000000; the largest rank is 256"):
        tuner.records(raw | {"theta_d_length": 4}, {}, describe(llama), weights_of(llama))


def test_a_rank_over_the_limit_is_refused_by_module() -> None:
    with pytest.raises(AdapterTooLarge, match=r"^fc has rank 9 \(r = 3\); the largest is 8; convert it with"):
        factors.check_rank("fc", 9, 8, "r = 3")
    factors.check_rank("fc", 8, 8, "r = 3")
