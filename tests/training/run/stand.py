"""Tiny bases on disk with the shipped tokenizer, rows of unequal lengths, and short runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tests.training.report import kit
from training.base import MODEL_DIR
from training.data import Example, LabelledText, LabelledTokens, TextExample
from training.events import Event
from training.run import RunResult, TrainingData, train
from training.spec import LoraSpec, TaskName, TrainSpec

SPEC = TrainSpec(
    LoraSpec(rank=4, alpha=8, dropout=0.1),
    steps=7,
    batch_size=2,
    accumulation=2,
    learning_rate=2e-2,
    save_every=3,
    evaluate_every=3,
)
"""Ten rows are three steps, of which the last is half as large."""
ROWS = 10


_DROPOUTS = ("dropout_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
"""Of a base itself: it is on while an adapter trains, and would draw differently in whole batches."""


def make_base(folder: Path, task: TaskName = "CAUSAL_LM", *, bias: bool = False) -> Path:
    """A base for the task, the same each time."""
    makers: dict[TaskName, Callable[[], Any]] = {
        "CAUSAL_LM": lambda: _llama(bias),
        "SEQ_2_SEQ_LM": kit.translator,
        "SEQ_CLS": kit.classifier,
        "TOKEN_CLS": kit.tagger,
    }
    with torch.random.fork_rng():
        model = makers[task]()
        for field in _DROPOUTS:
            if hasattr(model.config, field):
                setattr(model.config, field, 0.0)
        model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder)
    return folder


def _llama(bias: bool) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=kit.VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
        attention_bias=bias,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def examples(count: int, task: TaskName = "CAUSAL_LM", seed: int = 0) -> list[Example]:
    chance = random.Random(seed)
    words = ["".join(chance.choices("abcdefgh", k=chance.randint(2, 12))) for _ in range(count)]
    if task == "SEQ_CLS":
        return [LabelledText(word, kit.LABELS[index % 3]) for index, word in enumerate(words)]
    if task == "TOKEN_CLS":
        tags = [tuple(kit.LABELS[ord(letter) % 3] for letter in word) for word in words]
        return [LabelledTokens(tuple(word), labels) for word, labels in zip(words, tags, strict=True)]
    return [TextExample(f"{word}\n", word[::-1] + word) for word in words]


def data(
    task: TaskName = "CAUSAL_LM", *, rows: int = ROWS, validation: int = 0, seed: int = 0
) -> TrainingData:
    return TrainingData(examples(rows, task, seed), examples(validation, task, seed + 1))


def after(count: int) -> Callable[[], bool]:
    """Asks to stop after so many steps."""
    left = iter(range(count - 1, -1, -1))
    return lambda: next(left) == 0


def in_parts(
    base: Path, folder: Path, spec: TrainSpec, given: TrainingData, parts: Sequence[int]
) -> RunResult:
    """A run that is stopped after so many steps, gone on with, stopped again, and at last let go."""
    for index, count in enumerate(parts):
        stopped = train(spec, base, given, folder, stop=after(count), resume=index > 0)
        assert (stopped.complete, stopped.reason) == (False, "stopped")
        assert stopped.steps == sum(parts[: index + 1])
    return train(spec, base, given, folder, resume=True)


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    return found


def same_files(one: Path, other: Path) -> bool:
    """Whether both are the same adapter, byte for byte."""
    names = ("adapter_model.safetensors", "adapter_config.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


class Told(list[Event]):
    """A `Report` that remembers."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]
