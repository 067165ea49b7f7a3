"""Patterns that Python's matcher would try for years are told from those that adapters have."""

from __future__ import annotations

import pytest
from peft import LoraConfig

from training.methods.patterns import slow_pattern


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+x",
        r"([a-z]*)*x",
        r"(a|aa)+x",
        r"(a?){30}a{30}",
        "a?" * 30 + "a" * 30,
        r".*.*.*.*.*x",
        r"(?>(a+)+)x",
        r"(?=(a+)+x)a",
        r"((a+)?)+x",
        "(",
    ],
)
def test_slow_ones(pattern: str) -> None:
    for config in (
        LoraConfig(target_modules=pattern),
        LoraConfig(target_modules=["q_proj"], exclude_modules=pattern),
        LoraConfig(target_modules=["q_proj"], rank_pattern={pattern: 4}),
        LoraConfig(target_modules=["q_proj"], alpha_pattern={pattern: 4}),
    ):
        assert "too complex a pattern" in str(slow_pattern(config))


@pytest.mark.parametrize(
    "pattern",
    [
        "all-linear",
        r".*\.(q|v)_proj",
        r"model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)",
        r"^(?!.*visual).*\.(gate|up|down)_proj$",
        r"(model\.)?layers\.[0-9]+\.mlp\.up_proj",
    ],
)
def test_those_that_adapters_have(pattern: str) -> None:
    assert slow_pattern(LoraConfig(target_modules=pattern, rank_pattern={r"layers\.\d+\.mlp": 4})) is None
    assert slow_pattern(LoraConfig(target_modules=["(a+)+"])) is None  # names, which nothing matches
