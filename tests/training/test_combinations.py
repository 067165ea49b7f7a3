"""What can't be trained together is told when the spec is made, in one line."""

from __future__ import annotations

from typing import Any

import pytest

from training.spec import LoraSpec, TrainSpec


@pytest.mark.parametrize(
    ("lora", "more", "message"),
    [
        (
            {"method": "eva", "rank_pattern": {"q": 2}},
            {},
            "eva finds the rank of each module itself: leave rank_pa",
        ),
        ({"method": "adalora", "rank_pattern": {"q": 2}}, {}, "adalora finds the rank of each module itself"),
        ({"method": "adalora", "alpha_pattern": {"q": 2.0}}, {}, "adalora has one alpha for all modules"),
        (
            {"method": "pissa"},
            {"objective": "dpo"},
            "dpo compares with the base, which pissa changes: take lora",
        ),
        ({"method": "olora"}, {"objective": "dpo"}, "dpo compares with the base, which olora changes"),
        ({"method": "lora-ga"}, {"objective": "dpo"}, "dpo compares with the base, which lora-ga changes"),
        ({"method": "adalora"}, {"objective": "dpo"}, "dpo has no place for adalora's penalty: take lora"),
        (
            {"bias": "all"},
            {"objective": "dpo"},
            "dpo compares with the base, whose own biases bias=all trains",
        ),
        (
            {"modules_to_save": ("lm_head",)},
            {"objective": "dpo"},
            "dpo reads the head's own weights: leave lm_head out of modules_to_save",
        ),
    ],
)
def test_it_is_refused(lora: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("'", ".")):
        TrainSpec(LoraSpec(**lora), **more)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "qlora", "eva"])
def test_the_others_learn_preferences(method: Any) -> None:
    assert TrainSpec(LoraSpec(method=method), objective="dpo").beta == 0.1
