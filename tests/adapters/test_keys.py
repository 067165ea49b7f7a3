"""Tensor names: which module each belongs to, and nothing left over."""

from __future__ import annotations

import pytest

from adapters.errors import InvalidAdapter
from adapters.keys import PREFIX, FactorKeys, pair_factors


@pytest.mark.parametrize("form", [PREFIX + "{}.{}.weight", "{}.{}.weight", PREFIX + "{}.{}.default.weight"])
def test_pairs_by_module(form: str) -> None:
    keys = [form.format(module, part) for part in ("lora_B", "lora_A") for module in ("h.1.q", "h.0.q")]
    assert list(pair_factors(keys).items()) == [
        (module, FactorKeys(form.format(module, "lora_A"), form.format(module, "lora_B")))
        for module in ("h.0.q", "h.1.q")
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "hold no tensors"),
        (["q.lora_A.weight"], "has no lora_B beside it"),
        (["q.lora_B.weight"], "has no lora_A beside it"),
        (["q.lora_A.weight", "base_model.model.q.lora_B.weight"], "tensor 'q.lora_A.weight'"),
        (["lora_A.weight"], "tensor 'lora_A.weight'"),
        (["q.lora_A"], "unknown tensor 'q.lora_A'"),
        (["q.lora_A.weight\n", "q.lora_B.weight"], r"unknown tensor 'q.lora_A.weight\n'"),
        (["q.lora_A.weight", "q.lora_A.default.weight"], "another adapter"),
        (["q.lora_magnitude_vector.default.weight"], "DoRA is not supported yet"),
        (["embed.token_adapter.trainable_tokens_delta"], "trained tokens are not supported yet"),
    ],
)
def test_refused(keys: list[str], message: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        pair_factors(keys)
    assert message in str(caught.value)
