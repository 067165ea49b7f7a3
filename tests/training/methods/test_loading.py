"""Bases as they are loaded for each task: frozen, labelled, quantised; what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.methods.stand import LABELS, Decoder, Encoder, QuantizedDecoder, Seq2Seq, spec_for
from training.methods import load_base
from training.methods.loading import device_of


@pytest.fixture(scope="module")
def llama(folder: Path) -> Path:
    return Decoder("llama", folder / "llama").path


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("CAUSAL_LM", "LlamaForCausalLM"),
        ("SEQ_CLS", "LlamaForSequenceClassification"),
        ("TOKEN_CLS", "LlamaForTokenClassification"),
    ],
)
def test_each_task_has_its_model(llama: Path, task: Any, kind: str) -> None:
    labels = LABELS if task != "CAUSAL_LM" else ()
    model, tokenizer = load_base(llama, spec_for(task), labels)
    assert type(model).__name__ == kind
    assert not any(value.requires_grad for value in model.parameters())
    assert not model.training
    assert model.config.pad_token_id == tokenizer.pad_token_id
    if labels:
        assert model.config.id2label == dict(enumerate(LABELS))
        assert model.untrained == ["score.weight", *(["score.bias"] if task == "TOKEN_CLS" else [])][::-1]
    else:
        assert model.untrained == []


def test_a_head_of_another_size_is_drawn_anew(folder: Path) -> None:
    path = Encoder("bert", folder / "bert").path
    first, _ = load_base(path, spec_for("SEQ_CLS"), LABELS)
    first.save_pretrained(path.parent / "classifier")
    for file in path.glob("tokenizer*"):
        (path.parent / "classifier" / file.name).write_bytes(file.read_bytes())
    same, _ = load_base(path.parent / "classifier", spec_for("SEQ_CLS"), LABELS)
    assert same.untrained == []
    other, _ = load_base(path.parent / "classifier", spec_for("SEQ_CLS"), ("yes", "no"))
    assert other.untrained == ["classifier.bias", "classifier.weight"]
    assert other.classifier.weight.shape[0] == 2


def test_a_base_for_another_task_is_refused(folder: Path, llama: Path) -> None:
    t5 = Seq2Seq("t5", folder / "t5").path
    with pytest.raises(
        ValueError, match=r"^the base .* is no model for CAUSAL_LM; take one that is, or another"
    ):
        load_base(t5, spec_for())
    with pytest.raises(ValueError, match=r"^the base .* is no model for SEQ_2_SEQ_LM"):
        load_base(llama, spec_for("SEQ_2_SEQ_LM"))
    with pytest.raises(ValueError, match="SEQ_CLS needs at least two labels to tell apart"):
        load_base(llama, spec_for("SEQ_CLS"), ("one",))


def test_qlora_quantises_all_but_the_head(folder: Path) -> None:
    model, _ = load_base(QuantizedDecoder("llama", folder / "nf4").path, spec_for(method="qlora"))
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    assert model.model.layers[0].self_attn.q_proj.weight.quant_type == "nf4"
    assert type(model.lm_head) is torch.nn.Linear


def test_widths_that_bitsandbytes_computes_wrongly_are_refused(llama: Path) -> None:
    message = (
        r"qlora on a CPU needs layers with a multiple of 64 inputs, and .*q_proj has 48: take lora, or a GPU"
    )
    with pytest.raises(ValueError, match=message):
        load_base(llama, replace(spec_for(method="qlora"), device="cpu"))


def test_precision(llama: Path) -> None:
    model, _ = load_base(llama, replace(spec_for(), precision="bfloat16"))
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(spec_for()).type == device_of(replace(spec_for(), device="cpu")).type == "cpu"
    with pytest.raises(ValueError, match="device cuda: torch sees no GPU here; say cpu or auto"):
        device_of(replace(spec_for(), device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(spec_for()).type == device_of(replace(spec_for(), device="cuda")).type == "cuda"
