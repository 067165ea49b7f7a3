"""A tiny base on disk with the shipped tokenizer, and examples for it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from training.base import MODEL_DIR
from training.data import TextExample
from training.run import TrainingData

_SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "init_std": 0.1,
    },
    "mixtral": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
}


def make_model(family: str = "llama") -> Any:
    """With random weights, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{"initializer_range": 0.1, **_SIZES[family]},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_base(folder: Path, family: str = "llama") -> Path:
    make_model(family).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder)
    return folder


def data(seed: int, rows: int = 24, validation: int = 0) -> TrainingData:
    """Words of unequal length, each with itself turned round."""
    chance = random.Random(seed)

    def words(count: int) -> list[TextExample]:
        found = ["".join(chance.choices("abcdefgh", k=chance.randint(2, 9))) for _ in range(count)]
        return [TextExample(f"{seed}: {word}\n", word[::-1]) for word in found]

    return TrainingData(words(rows), words(validation))
