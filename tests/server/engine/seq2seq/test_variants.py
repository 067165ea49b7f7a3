"""What adapters do beside LoRA, on both sides of a T5 base and in one batch, against PEFT alone."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig, get_peft_model

from tests.kit import ask, prompts
from tests.server.engine.seq2seq.conftest import MakeFamily
from tests.server.engine.seq2seq.stand import Seq2SeqFamily, run_all, seq2seq_core

TASK: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM"}
VARIANTS: dict[str, PeftConfig] = {
    "dora": LoraConfig(**TASK, r=3, use_dora=True, target_modules="all-linear"),
    "norms": LoraConfig(
        **TASK, r=2, target_modules=["q"], modules_to_save=["layer_norm", "final_layer_norm"]
    ),
    "own-head": LoraConfig(**TASK, r=2, target_modules=["v"], modules_to_save=["lm_head"]),
    "tables": LoraConfig(**TASK, r=3, target_modules=["embed_tokens", "k"]),
    "tokens": LoraConfig(
        **TASK,
        r=2,
        target_modules=["o"],
        trainable_token_indices={"encoder.embed_tokens": [5, 9, 40], "decoder.embed_tokens": [0, 7]},
    ),
    "ia3": IA3Config(**TASK, target_modules=["k", "v", "wo"], feedforward_modules=["wo"]),
    "loha": LoHaConfig(**TASK, r=2, target_modules=["q", "wi_0"]),
}


class _Variants(Seq2SeqFamily):
    """The same base with these adapters: everything that PEFT would train is random."""

    def adapter(self, name: str) -> Path:
        folder = self.folder / "variants" / name
        if not folder.exists():
            generator = torch.Generator().manual_seed(sum(name.encode()))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = get_peft_model(copy.deepcopy(self.stock), copy.deepcopy(VARIANTS[name]))
                with torch.no_grad():
                    for parameter in model.parameters():
                        if parameter.requires_grad:
                            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
                model.save_pretrained(str(folder), save_embedding_layers=False)
        return folder


@pytest.fixture(scope="module")
def flan(seq2seq: MakeFamily) -> _Variants:
    return _Variants("flan", seq2seq("flan").folder)


def test_variants_in_one_batch_answer_as_peft_does_alone(flan: _Variants) -> None:
    names = [None, *VARIANTS]
    cases = [(name, source) for source in prompts(11, 30, 2, seed=3) for name in names]
    with seq2seq_core(flan, kv_blocks=1000) as core:
        answers = run_all(core, [ask(str(i), source, name) for i, (name, source) in enumerate(cases)])
    for i, (name, source) in enumerate(cases):
        assert answers[str(i)].error is None, (name, answers[str(i)].error)
        assert answers[str(i)].tokens == flan.expected(name, source, 8), (name, len(source))
    assert len({tuple(flan.expected(name, cases[0][1], 8)) for name in names}) == len(names)
