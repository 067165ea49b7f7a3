"""Tiny models over bytes for each task, and rows for them."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    T5Config,
)

from training.base import MODEL_DIR
from training.data import IGNORE, Tokens

LABELS = ("O", "PER", "LOC")
VOCAB = 259


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def tagger(labels: tuple[str, ...] = LABELS) -> Any:
    torch.manual_seed(1)
    return AutoModelForTokenClassification.from_config(_bert(labels)).eval()


def classifier(labels: tuple[str, ...] = LABELS) -> Any:
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_config(_bert(labels)).eval()


def translator() -> Any:
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=VOCAB,
        d_model=32,
        d_ff=48,
        d_kv=16,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    return AutoModelForSeq2SeqLM.from_config(config).eval()


def rows(task: str, count: int, seed: int = 0) -> list[Tokens]:
    """Random rows of unequal lengths."""
    rng = random.Random(seed)
    return [_row(task, rng) for _ in range(count)]


def _row(task: str, rng: random.Random) -> Tokens:
    ids = [rng.randrange(3, VOCAB) for _ in range(rng.randrange(4, 20))]
    if task == "SEQ_CLS":
        return Tokens(ids, [rng.randrange(len(LABELS))])
    if task == "TOKEN_CLS":
        return Tokens(ids, [rng.choice([IGNORE, 0, 0, 1, 2]) for _ in ids])
    if task == "SEQ_2_SEQ_LM":
        return Tokens(ids, [rng.randrange(3, VOCAB) for _ in range(rng.randrange(2, 9))] + [2])
    trained = rng.randrange(1, len(ids) - 1)
    return Tokens([*ids, 2], [IGNORE] * trained + [*ids[trained:], 2])


def _bert(labels: tuple[str, ...]) -> BertConfig:
    return BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
