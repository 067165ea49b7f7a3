"""Every method on every task: what training ended with, PEFT on the pristine base, and the server agree."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.training.methods.stand import (
    Base,
    Decoder,
    Encoder,
    QuantizedDecoder,
    Seq2Seq,
    distance,
    logits,
    spec_for,
    train,
    with_peft,
)
from training.spec import Method, TaskName

CLOSE = 1e-5
METHODS = [method for method in get_args(Method) if method != "qlora"]
BASES: dict[str, tuple[type[Base], str, TaskName, list[str]]] = {
    "llama": (Decoder, "llama", "CAUSAL_LM", METHODS),
    "llama in NF4": (QuantizedDecoder, "llama", "CAUSAL_LM", ["qlora"]),
    "gpt2": (Decoder, "gpt2", "CAUSAL_LM", ["dora", "adalora", "lora-ga", "pissa"]),
    "llama that classifies": (Decoder, "llama", "SEQ_CLS", ["lora", "dora"]),
    "llama that labels tokens": (Decoder, "llama", "TOKEN_CLS", ["lora-ga"]),
    "t5": (Seq2Seq, "t5", "SEQ_2_SEQ_LM", ["lora", "adalora", "lora-ga", "pissa", "eva"]),
    "roberta that classifies": (Encoder, "roberta", "SEQ_CLS", ["lora", "adalora", "olora"]),
    "bert that labels tokens": (Encoder, "bert", "TOKEN_CLS", ["rslora", "eva"]),
    "deberta that classifies": (Encoder, "deberta-v3", "SEQ_CLS", ["pissa"]),
}
CELLS = [(name, method) for name, (_, _, _, methods) in BASES.items() for method in methods]
SOME = {"llama": ("q_proj", "down_proj"), "t5": ("q", "k", "wo"), "bert": ("query", "value")}
"""All linear layers are adapted but here: EVA takes its time for each."""


class Shelf:
    """One base with an adapter by each method, all served in one batch."""

    def __init__(self, name: str, folder: Path) -> None:
        kind, family, self.task, methods = BASES[name]
        self.base = kind(family, folder)
        targets = {
            "eva": SOME.get(family),
            **(dict.fromkeys(METHODS, SOME["t5"]) if family == "t5" else {}),
        }
        self.trained = {
            method: train(
                self.base.path,
                folder / method,
                spec_for(self.task, method=method, target_modules=targets.get(method) or "all-linear"),
            )
            for method in methods
        }
        self.served = self.base.served(self.trained)


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda name: Shelf(name, tmp_path_factory.mktemp("shelf")))


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_training_peft_and_the_server_agree(shelves: Any, name: str, method: str) -> None:
    shelf = shelves(name)
    trained, served = shelf.trained[method], shelf.served[method]
    wanted = logits(trained.model, shelf.task, served.tokens)
    in_peft = with_peft(shelf.base.path, trained)
    found = logits(in_peft, shelf.task, served.tokens)
    assert distance(found, wanted) <= CLOSE
    assert distance(served.logits, found) <= CLOSE
    with in_peft.disable_adapter():
        assert distance(logits(in_peft, shelf.task, served.tokens), wanted) > 0.01
