"""The counted parameters are PEFT's own count, family by family and method by method."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from typing import Any

import pytest
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tests.tiny import FAMILIES, make_model
from training.plan.facts import BaseFacts, facts_of
from training.plan.trainable import Trainable, adapted, count, layer_of, rank_for_share
from training.spec import LoraSpec, TaskName

_ENCODER: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa_niter_2"},
    "olora": {"init_lora_weights": "olora"},
}


@cache
def model_of(family: str) -> Any:
    return make_model(family)


@cache
def facts(family: str) -> BaseFacts:
    return facts_of(model_of(family), family)


def by_peft(model: Any, config: Any) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of fan_in_fan_out, which it then corrects itself
        trained, total = get_peft_model(copy.deepcopy(model), config).get_nb_trainable_parameters()
    return int(trained), int(total)


def numbers(found: Trainable) -> tuple[int, int]:
    return found.trainable, found.total


@pytest.mark.parametrize("targets", ["all-linear", "default"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_lora_on_each_family(family: str, targets: str) -> None:
    base = facts(family)
    names = "all-linear" if targets == "all-linear" else list(base.usual)
    wanted = by_peft(model_of(family), LoraConfig(task_type="CAUSAL_LM", r=5, target_modules=names))
    assert numbers(count(base, LoraSpec(rank=5, target_modules=targets))) == wanted


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llama", "rslora"),
        ("llama", "dora"),
        ("llama", "pissa"),
        ("llama", "olora"),
        ("gpt2", "dora"),
        ("gpt2", "pissa"),
    ],
)
def test_methods_of_the_family(family: str, method: Any) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", **OPTIONS[method])
    found = count(facts(family), LoraSpec(method=method, rank=4))
    assert numbers(found) == by_peft(model_of(family), config)


def test_adalora_begins_with_half_as_much_again() -> None:
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        init_r=12,
        target_r=8,
        total_step=20,
        tinit=2,
        tfinal=6,
        target_modules="all-linear",
    )
    found = count(facts("llama"), LoraSpec(method="adalora", rank=8))
    assert numbers(found) == by_peft(model_of("llama"), config)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("family", ["opt", "qwen2", "gpt2", "gpt_neox"])
def test_biases(family: str, bias: Any) -> None:
    names = list(facts(family).usual)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=names, bias=bias)
    found = count(facts(family), LoraSpec(rank=4, target_modules="default", bias=bias))
    assert numbers(found) == by_peft(model_of(family), config)
    assert found.biases > 0


def test_modules_that_train_whole_ranks_and_layers() -> None:
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["q_proj", "down_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        rank_pattern={"down_proj": 7, r"layers\.1\.self_attn\.q_proj": 2},
        layers_to_transform=[1, 2],
    )
    spec = LoraSpec(
        rank=4,
        target_modules=("q_proj", "down_proj"),
        modules_to_save=("embed_tokens", "lm_head"),
        rank_pattern={"down_proj": 7, r"layers\.1\.self_attn\.q_proj": 2},
        layers=(1, 2),
    )
    found = count(facts("llama"), spec)
    assert numbers(found) == by_peft(model_of("llama"), config)
    assert found.whole == 2 * 96 * 48


@pytest.mark.parametrize(
    ("kind", "task", "loader"),
    [
        ("bert", "SEQ_CLS", AutoModelForSequenceClassification),
        ("roberta", "SEQ_CLS", AutoModelForSequenceClassification),
        ("roberta", "TOKEN_CLS", AutoModelForTokenClassification),
        ("llama", "SEQ_CLS", AutoModelForSequenceClassification),
    ],
)
def test_classifiers_train_their_head(kind: str, task: TaskName, loader: Any) -> None:
    model = loader.from_config(AutoConfig.for_model(kind, **_ENCODER, num_labels=3))
    base = facts_of(model, kind, task)
    config = LoraConfig(task_type=task, r=4, target_modules=list(base.usual))
    found = count(base, LoraSpec(rank=4, target_modules="default"), task)
    assert numbers(found) == by_peft(model, config)
    assert found.whole > 0


def test_a_model_with_an_encoder_and_a_decoder() -> None:
    config = AutoConfig.for_model(
        "t5", vocab_size=96, d_model=48, d_ff=80, d_kv=12, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = AutoModelForSeq2SeqLM.from_config(config)
    wanted = by_peft(model, LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=["q", "v"]))
    base = facts_of(model, "t5", "SEQ_2_SEQ_LM")
    assert numbers(count(base, LoraSpec(rank=4, target_modules="default"), "SEQ_2_SEQ_LM")) == wanted
    assert base.encoder_layers == 2


def test_a_pattern_over_full_names() -> None:
    names = adapted(facts("llama"), LoraSpec(target_modules=r".*layers\.1\..*_proj"))
    assert {layer_of(layer.name) for layer in names} == {1}
    assert len(names) == 7


def test_names_that_the_base_has_not_are_told_with_those_that_it_has() -> None:
    with pytest.raises(
        ValueError, match="target_modules query: llama has no such linear layer; it has down_proj"
    ):
        count(facts("llama"), LoraSpec(target_modules=("query",)))


def test_the_rank_for_a_share_of_the_base() -> None:
    base = facts("llama")
    rank = rank_for_share(base, LoraSpec(), 0.5)
    assert count(base, LoraSpec(rank=rank)).trainable == pytest.approx(0.5 * base.parameters, rel=0.05)
