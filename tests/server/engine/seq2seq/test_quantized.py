"""A quantised base of the T5 family answers as the weights that its codes stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from adapters.quantized import Quantization, QuantizedMap
from server.engine.seq2seq.model import Seq2SeqModel
from tests.kit import ask, prompts
from tests.quantized import KINDS, dequantized, hold, with_adapter
from tests.server.engine.seq2seq.conftest import MakeFamily
from tests.server.engine.seq2seq.stand import generate, run_all, seq2seq_core

PROMPTS = prompts(5, 19)
TOKENS = 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["t5", "flan"])
def test_a_mixed_batch_answers_as_peft_does(
    name: str, kind: Quantization, seq2seq: MakeFamily, tmp_path: Path
) -> None:
    family = seq2seq(name)
    family.stock.save_pretrained(tmp_path)
    plain = dequantized(tmp_path, kind, AutoModelForSeq2SeqLM)
    model = Seq2SeqModel(hold(tmp_path, kind, torch.float32), name="base", digest="checkpoint")
    assert model.spec.quantization == kind
    assert sum(isinstance(layer.linear, QuantizedMap) for layer in model.linears.values()) > 20
    requests = [
        ask(f"{adapter}/{index}", prompt, adapter, max_tokens=TOKENS)
        for index, prompt in enumerate(PROMPTS)
        for adapter in (None, "qv", "all")
    ]
    with seq2seq_core(family, model=model) as core:
        answers = run_all(core, requests)
    for adapter in (None, "qv", "all"):
        oracle = plain if adapter is None else with_adapter(plain, family.adapter(adapter))
        for request in (each for each in requests if each.adapter == adapter):
            answer = answers[request.request_id]
            assert answer.error is None
            assert answer.tokens == generate(oracle, request.prompt, TOKENS), request.request_id
