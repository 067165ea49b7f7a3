"""Prompts are the same each time, and make an adapter act."""

from __future__ import annotations

import torch

from adapters.delta import AdapterWeights, EmbeddingDelta
from server.proof.probes import MAX_TOKENS, POSITIONS, probe_prompts
from tests.server.proof.stand import Words
from tests.tiny import VOCAB


def test_they_are_the_same_each_time_and_within_the_vocabulary() -> None:
    adapter = AdapterWeights("a", {})
    prompts = probe_prompts(Words(), VOCAB, adapter, 256)
    assert prompts == probe_prompts(Words(), VOCAB, AdapterWeights("b", {}), 256)
    assert len(prompts) == 4
    assert all(POSITIONS <= len(prompt) <= MAX_TOKENS for prompt in prompts)
    assert all(0 <= token < VOCAB for prompt in prompts for token in prompt)


def test_they_hold_trained_tokens_and_invocations() -> None:
    table = EmbeddingDelta(ids=torch.tensor([90, 91]), rows=torch.zeros(2, 4))
    (first, *_) = probe_prompts(Words(), VOCAB, AdapterWeights("a", {}, {"embed": table}), 256)
    assert {90, 91} <= set(first)
    for prompt in probe_prompts(Words(), VOCAB, AdapterWeights("a", {}, invocation=(7, 8, 9)), 16):
        assert prompt[-POSITIONS - 2 : -POSITIONS + 1] == (7, 8, 9)
        assert len(prompt) <= 16
