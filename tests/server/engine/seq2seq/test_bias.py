"""Relative bias against the model's own, for both sides and any length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.engine.seq2seq.bias import RelativeBias
from tests.server.engine.seq2seq.stand import make_t5


def _attention(family: str, side: str) -> Any:
    return getattr(make_t5(family), side).block[0].layer[0].SelfAttention


@pytest.mark.parametrize("family", ["t5", "umt5"])
@pytest.mark.parametrize("length", [1, 2, 30, 700])
def test_between_all_tokens_it_is_the_models(family: str, length: int) -> None:
    attention = _attention(family, "encoder")
    bias = RelativeBias(attention)
    with torch.no_grad():
        expected = attention.compute_bias(length, length)[0]
        assert torch.equal(bias.between_all(length, 0, length), expected)
        start, stop = length // 3, max(length // 2, length // 3 + 1)
        assert torch.equal(bias.between_all(length, start, stop), expected[:, start:stop])


def test_to_the_past_it_is_the_models() -> None:
    attention = _attention("t5", "decoder")
    bias = RelativeBias(attention)
    with torch.no_grad():
        for place in (0, 1, 17, 600, 5):
            expected = attention.compute_bias(place + 1, place + 1)[0, :, -1:]
            assert torch.equal(bias.to_past(place), expected)
