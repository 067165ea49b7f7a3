"""The proof of every kind: heads, hidden states, encoders, encoder-decoders, quantised bases."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights
from adapters.errors import InvalidAdapter
from adapters.weights import base_weights
from server.proof.process import OracleRows
from server.proof.prover import Prover
from server.proof.stock import StockBase
from server.proof.subject import Subject, subject_of
from server.proof.worker import Oracle
from tests import quantized
from tests.kit import LIMITS
from tests.server.engine.encoder import stand as encoders
from tests.server.engine.seq2seq.stand import Seq2SeqFamily
from tests.server.proof.stand import Stand, Words
from tests.tiny import make_adapter

CLASSES: dict[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "FEATURE_EXTRACTION": AutoModel,
}


class InProcess:
    """PEFT's side without a process of its own; what goes through the wire goes through it here too."""

    def __init__(self, base: StockBase) -> None:
        self._oracle = Oracle(base)

    def rows(
        self, adapter: Path, subject: Subject, prompts: Sequence[Sequence[int]], positions: int
    ) -> OracleRows:
        subject = Subject.from_json(subject.to_json())
        base, adapted = self._oracle.rows(adapter, subject, [[*prompt] for prompt in prompts], positions)
        return OracleRows(tuple(base), tuple(adapted))

    def close(self) -> None:
        """Nothing to end."""


@dataclass
class Case:
    """An adapter on a base in serving form, and PEFT's side."""

    model: Any
    folder: Path
    oracle: InProcess

    @property
    def adapter(self) -> AdapterWeights:
        return read_adapter(
            (self.folder / CONFIG_FILE).read_bytes(),
            self.folder / WEIGHTS_FILE,
            self.model.spec,
            LIMITS,
            base_weights=base_weights(self.model.model, self.model.linears),
        )


def _on_decoder(task: str, folder: Path, family: str = "llama") -> Case:
    stand = Stand(family, folder)
    labels = {} if task == "FEATURE_EXTRACTION" else {"num_labels": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = CLASSES[task].from_pretrained(stand.base, **labels)
        adapter = make_adapter(
            stock, folder / "adapter", 7, task_type=task, target_modules=["q_proj", "down_proj"]
        )
    return Case(stand.model, adapter, InProcess(StockBase(stand.base, torch.float32, None)))


def _on_encoder(family: str, task: str, folder: Path, kind: str = "MASKED_LM") -> Case:
    base = encoders.save_base(family, kind, folder / "base")
    targets = encoders.ATTENTION.get(family, ["query", "value"])
    trained = encoders.Trained(base, folder / "adapter", task, 3, 5, target_modules=targets)
    stock = StockBase(base, torch.float32, None)
    return Case(encoders.serve(base), trained.folder, InProcess(stock))


def _on_t5(folder: Path) -> Case:
    family = Seq2SeqFamily("flan", folder)
    family.stock.save_pretrained(folder / "base")
    stock = StockBase(folder / "base", torch.float32, None)
    return Case(family.model, family.adapter("all"), InProcess(stock))


def _on_quantized(kind: Any, folder: Path) -> Case:
    base = quantized.save_model(folder / "base")
    adapter = quantized.qlora(base, kind, folder / "adapter", use_dora=kind == "nf4")
    stock = StockBase(base, torch.float32, kind)
    return Case(quantized.serve(base, kind), adapter, InProcess(stock))


CASES: dict[str, Any] = {
    "decoder, SEQ_CLS": lambda folder: _on_decoder("SEQ_CLS", folder),
    "decoder, TOKEN_CLS": lambda folder: _on_decoder("TOKEN_CLS", folder, "qwen2"),
    "decoder, FEATURE_EXTRACTION": lambda folder: _on_decoder("FEATURE_EXTRACTION", folder),
    "roberta, SEQ_CLS": lambda folder: _on_encoder("roberta", "SEQ_CLS", folder),
    "bert, SEQ_CLS, with a pooler": lambda folder: _on_encoder("bert", "SEQ_CLS", folder, "BODY"),
    "deberta-v2, TOKEN_CLS": lambda folder: _on_encoder("deberta-v2", "TOKEN_CLS", folder),
    "deberta, FEATURE_EXTRACTION": lambda folder: _on_encoder(
        "deberta", "FEATURE_EXTRACTION", folder, "BODY"
    ),
    "t5": _on_t5,
    "nf4, DoRA": lambda folder: _on_quantized("nf4", folder),
    "int8": lambda folder: _on_quantized("int8", folder),
}


@pytest.mark.parametrize("name", CASES)
def test_right_is_proved_and_wrong_is_refused(name: str, tmp_path: Path) -> None:
    case = CASES[name](tmp_path)
    prover = Prover(case.model, Words(), case.oracle)
    adapter = case.adapter

    proof = prover(case.folder, adapter)
    assert proof.status == "proved", proof
    assert 0 <= (proof.max_logit_difference or 0.0) < 1e-3
    if subject_of(case.model.spec, adapter).distributes:
        assert (proof.kl_from_base or 0.0) > 1e-5
    else:
        assert proof.kl_from_base is None

    halved = {name: replace(delta, scale=delta.scale / 2) for name, delta in adapter.deltas.items()}
    with pytest.raises(InvalidAdapter, match="the parity proof failed"):
        prover(case.folder, replace(adapter, deltas=halved))


@pytest.mark.parametrize("name", ["decoder, SEQ_CLS", "roberta, SEQ_CLS"])
def test_a_wrong_head_is_refused(name: str, tmp_path: Path) -> None:
    case = CASES[name](tmp_path)
    adapter = case.adapter
    head = {name: 1.2 * tensor for name, tensor in adapter.head.items()}
    with pytest.raises(InvalidAdapter, match="the parity proof failed"):
        Prover(case.model, Words(), case.oracle)(case.folder, replace(adapter, head=head))


def test_one_decoder_is_read_once_for_all_tasks(tmp_path: Path) -> None:
    stand = Stand("llama", tmp_path)
    stock = StockBase(stand.base, torch.float32, None)
    generates = stock.model(Subject("decoder", "CAUSAL_LM"))
    classifies = stock.model(Subject("decoder", "SEQ_CLS", 3, ("score",)))
    assert classifies.model is generates.model
    assert stock.model(Subject("decoder", "FEATURE_EXTRACTION")) is generates.model
    assert classifies.score.weight.shape == (3, 48)
