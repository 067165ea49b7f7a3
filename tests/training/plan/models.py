"""Bases of real shapes, made from configs: nothing of them has weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from training.plan.facts import BaseFacts, RowFacts, facts_of

ROWS = RowFacts(rows=2000, tokens=400_000, longest=500, trained=150_000)
_SHAPES: dict[str, dict[str, Any]] = {
    # hidden, feed-forward, layers, heads, heads of keys, vocabulary: Llama's of these sizes
    "7B": {"sizes": (4096, 11008, 32, 32, 32, 32000)},
    "13B": {"sizes": (5120, 13824, 40, 40, 40, 32000)},
    "30B": {"sizes": (6656, 17920, 60, 52, 52, 32000)},
    "65B": {"sizes": (8192, 22016, 80, 64, 64, 32000)},
    "1B": {"sizes": (2048, 8192, 16, 32, 8, 128256)},
    "0.5B": {"sizes": (896, 4864, 24, 14, 2, 151936), "kind": "qwen2", "tied": True},
}


@cache
def base_of(name: str) -> BaseFacts:
    shape = _SHAPES[name]
    hidden, inner, layers, heads, keys, vocabulary = shape["sizes"]
    config = AutoConfig.for_model(
        shape.get("kind", "llama"),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.get("tied", False),
    )
    with torch.device("meta"):
        return facts_of(AutoModelForCausalLM.from_config(config), name)
