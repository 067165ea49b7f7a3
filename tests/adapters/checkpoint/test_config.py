"""Every field of PEFT's LoraConfig is applied, without effect, or refused by name."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import peft
import pytest
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from adapters.checkpoint.config import LoraConfig, parse_config
from adapters.checkpoint.config_fields import (
    ADALORA_APPLIED,
    ADALORA_NO_EFFECT,
    ADALORA_REFUSED,
    APPLIED,
    NO_EFFECT,
    REFUSED,
)
from adapters.errors import AdapterTooLarge, InvalidAdapter
from adapters.limits import AdapterLimits
from tests.adapters.conftest import LIMITS, spec_of, tiny_gpt2, tiny_llama

MINIMAL: dict[str, Any] = {"peft_type": "LORA", "target_modules": ["q_proj"]}
MODULES = [*spec_of(tiny_llama()).linears, *spec_of(tiny_gpt2()).linears, "q_proj", "h.0.attn", "my_q_proj"]


def parse(**fields: object) -> LoraConfig:
    config = parse_config(json.dumps(MINIMAL | fields).encode(), LIMITS)
    assert isinstance(config, LoraConfig)
    return config


def refused(**fields: object) -> str:
    with pytest.raises((InvalidAdapter, AdapterTooLarge)) as caught:
        parse(**fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "tables"),
    [
        (peft.LoraConfig, [*APPLIED, *NO_EFFECT, *REFUSED]),
        (peft.AdaLoraConfig, [*ADALORA_APPLIED, *ADALORA_NO_EFFECT, *ADALORA_REFUSED]),
    ],
)
def test_every_field_of_peft_is_in_one_table(theirs: type, tables: list[str]) -> None:
    assert len(tables) == len(set(tables))
    assert {field.name for field in dataclasses.fields(theirs)} <= set(tables)


def test_defaults_of_peft_pass() -> None:
    config = peft.LoraConfig(target_modules=["q_proj"]).to_dict()
    parsed = parse_config(json.dumps(config | {"target_modules": ["q_proj"]}).encode(), LIMITS)
    assert isinstance(parsed, LoraConfig)
    assert parsed.is_plain
    assert (parsed.r, parsed.lora_alpha, parsed.scale_for("q_proj")) == (8, 8.0, 1.0)


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_refused_by_name(field: str) -> None:
    assert f"{field}: {REFUSED[field]}" in refused(**{field: [1]})
    nothing: list[object] = [None, False, [], {}]
    for off in nothing:
        parse(**{field: off})


@pytest.mark.parametrize("field", sorted(ADALORA_REFUSED))
def test_refused_with_adalora(field: str) -> None:
    assert f"{field}: {ADALORA_REFUSED[field]}" in refused(peft_type="ADALORA", **{field: [1]})


@pytest.mark.parametrize("init", ["pissa_niter_4", "PiSSA", "corda", "loftq", "lora_ga", 1, None, []])
def test_inits_that_change_the_base_beyond_repetition(init: object) -> None:
    message = refused(init_lora_weights=init)
    assert "init_lora_weights" in message
    assert "save with path_initial_model_for_weight_conversion" in message


@pytest.mark.parametrize(("init", "name"), [("pissa", "pissa"), ("olora", "olora"), ("OLoRA", "olora")])
def test_inits_that_are_folded_in(init: str, name: str) -> None:
    assert (parse(init_lora_weights=init).init, parse(init_lora_weights=init).variant) == (name, name)


@pytest.mark.parametrize("init", [True, False, "gaussian", "Orthogonal", "eva", "mica"])
def test_inits_that_do_not(init: object) -> None:
    assert parse(init_lora_weights=init).init is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "OFT"}, "peft_type 'OFT' is not supported: "),
        ({"peft_type": "NEW"}, "peft_type 'NEW' is not supported: there is no reader for it; merge it"),
        ({"peft_type": None}, "peft_type must name a tuner"),
        (
            {"task_type": "QUESTION_ANS"},
            "task_type 'QUESTION_ANS' is not supported; those that are: CAUSAL_LM",
        ),
        ({"bias": "some"}, 'bias must be "none", "all" or "lora_only", not \'some\''),
        ({"bias": 3}, 'bias must be "none", "all" or "lora_only", not 3'),
        ({"use_dora": 1}, "use_dora must be true or false"),
        ({"lora_bias": "yes"}, "lora_bias must be true or false"),
        ({"modules_to_save": [1]}, "modules_to_save must be a list of module names"),
        ({"target_parameters": {"a": 1}}, "target_parameters must be a list of module names"),
        ({"use_bdlora": True}, "use_bdlora must be an object with nblocks, not True"),
        ({"use_bdlora": {"nblocks": 0}}, "use_bdlora.nblocks must be an integer of at least 1"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices must be a list of token ids, not [-1]"),
        ({"trainable_token_indices": {"e": 1}}, "trainable_token_indices['e'] must be a list of token ids"),
        ({"alora_invocation_tokens": ["a"]}, "alora_invocation_tokens must be a list of token ids"),
        ({"use_dora": True, "kasa_config": {"beta": 1}}, "use_dora and kasa_config don't go together"),
        ({"use_dora": True, "lora_bias": True}, "lora_bias doesn't go with DoRA, PiSSA and OLoRA"),
        ({"target_parameters": ["w"], "use_dora": True}, "target_parameters doesn't go with use_dora"),
        (
            {"target_parameters": ["w"], "init_lora_weights": "pissa"},
            "target_parameters doesn't go with init_lora_weights",
        ),
        (
            {"alora_invocation_tokens": [1], "modules_to_save": ["norm"]},
            "modules_to_save acts on every token, alora_invocation_tokens from one on",
        ),
        (
            {"init_lora_weights": "olora", "fan_in_fan_out": True},
            "init_lora_weights 'olora' on layers with fan_in_fan_out is not supported",
        ),
        ({"peft_type": "ADALORA", "lora_alpha": 0}, "lora_alpha must be positive"),
        ({"peft_type": "ADALORA", "init_r": 999}, "init_r is 999; the largest rank is 256"),
        ({"peft_type": "ADALORA", "rank_pattern": [1]}, "rank_pattern must map module names to lists"),
        (
            {"peft_type": "ADALORA", "rank_pattern": {"q.lora_E": [1]}},
            "rank_pattern['q.lora_E'] must be a list of true and false",
        ),
        ({"brand_new": 3}, "unknown field 'brand_new' with value 3"),
        ({"r": 0}, "r must be an integer of at least 1, not 0"),
        ({"r": True}, "r must be an integer"),
        ({"r": 8.0}, "r must be an integer"),
        ({"r": "8"}, "r must be an integer"),
        ({"r": 257}, "r is 257; the largest rank is 256"),
        ({"r": 10**400}, "the largest rank is 256"),
        ({"lora_alpha": "16"}, "lora_alpha must be a finite number, not '16'"),
        ({"lora_alpha": True}, "lora_alpha must be a finite number"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a finite number"),
        ({"use_rslora": 1}, "use_rslora must be true or false, not 1"),
        ({"rank_pattern": [1]}, "rank_pattern must map module names to numbers"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern['q'] must be an integer of at least 1"),
        ({"rank_pattern": {"q": 999}}, "rank_pattern['q'] is 999; the largest rank is 256"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern: '(' is not a regular expression"),
        ({"rank_pattern": {f"q{i}": 1 for i in range(4097)}}, "rank_pattern has 4097 entries"),
        (
            {"alpha_pattern": {f"q{i}+": 1 for i in range(65)}},
            "alpha_pattern has over 64 regular expressions",
        ),
        ({"alpha_pattern": {"q": None}}, "alpha_pattern['q'] must be a finite number"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"target_modules": []}, "target_modules is missing"),
        ({"target_modules": [1]}, "target_modules must be a list of module names"),
        ({"target_modules": {"a": 1}}, "target_modules must be a list of module names"),
        ({"exclude_modules": 5}, "exclude_modules must be a list of module names"),
        ({"layers_to_transform": "0"}, "layers_to_transform must be layer numbers"),
        ({"layers_to_transform": [-1]}, "layers_to_transform must be layer numbers"),
        ({"layers_pattern": "h"}, "layers_pattern needs layers_to_transform"),
        (
            {"layers_pattern": "(h", "layers_to_transform": [0]},
            "layers_pattern '(h' must be a plain module name",
        ),
        ({"target_modules": "q.*", "layers_to_transform": [0]}, "need a list of target_modules"),
    ],
)
def test_wrong_values(fields: dict[str, Any], message: str) -> None:
    assert message in refused(**fields)


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b'{"r": NaN}', b'{"r": 1, "r": 2}', b"[" * 10**5])
def test_not_a_json_object(text: bytes) -> None:
    with pytest.raises(InvalidAdapter, match=r"^adapter_config\.json "):
        parse_config(text, LIMITS)


def test_too_long() -> None:
    with pytest.raises(AdapterTooLarge, match="the limit is 10 bytes"):
        parse_config(b"{" * 11, AdapterLimits(max_config_bytes=10))


PATTERNS: list[dict[str, int]] = [
    {"q_proj": 1, "proj": 2, ".*proj": 3},
    {".*proj": 3, "q_proj": 1},
    {"layers.1.self_attn.q_proj": 1, "self.attn.k_proj": 2},
    {r"^model\.layers\.\d+\.mlp\..*": 4, "(c_attn|c_proj)": 5, "h.0": 6},
    {"model.layers.0.self_attn.q_proj|lm_head": 4},
]


@pytest.mark.parametrize("patterns", PATTERNS)
def test_patterns_choose_as_peft_does(patterns: dict[str, int]) -> None:
    config = parse(rank_pattern=patterns, alpha_pattern=patterns, r=9, lora_alpha=0.5)
    for module in MODULES:
        key = get_pattern_key(list(patterns), module)
        assert config.rank_for(module) == patterns.get(key, 9)
        assert config.alpha_for(module) == patterns.get(key, 0.5)


TARGETS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "attn.c_proj"]},
    {"target_modules": ["lm_head", "model.layers.1.mlp.up_proj"]},
    {"target_modules": r".*\.(q|k)_proj"},
    {"target_modules": "q_proj"},
    {"target_modules": r"^(model)(?!.*(lm_head|down)).*proj"},
    {"target_modules": ["q_proj", "c_attn"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    {"target_modules": ["q_proj", "c_attn"], "exclude_modules": r".*\.[01]\..*"},
    {"target_modules": ["q_proj", "c_attn"], "layers_to_transform": [0, 2]},
    {"target_modules": ["q_proj", "c_attn"], "layers_to_transform": 1, "layers_pattern": ["nope", "h"]},
    {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0], "layers_pattern": "model.layers"},
    {"target_modules": ["model.layers.1.self_attn.q_proj", "c_fc"], "layers_to_transform": [0]},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": ["q_proj", "up_proj", "c_fc"], "modules_to_save": ["mlp", "lm_head"]},
]


@pytest.mark.parametrize("fields", TARGETS)
def test_targets_are_those_of_peft(fields: dict[str, Any]) -> None:
    config, theirs = parse(**fields), peft.LoraConfig(**fields)
    for module in MODULES:
        assert config.targets(module) == bool(check_target_module_exists(theirs, module)), module


def test_all_linear_leaves_out_the_head() -> None:
    config = parse(target_modules="All-Linear")
    assert config.targets("model.layers.0.mlp.up_proj")
    assert not config.targets("lm_head")


def test_scale() -> None:
    assert parse(r=16, lora_alpha=8).scale_for("q_proj") == 0.5
    assert parse(r=16, lora_alpha=8, use_rslora=True).scale_for("q_proj") == 2.0


def test_messages_about_fields_say_what_to_do() -> None:
    for reason in (*REFUSED.values(), *ADALORA_REFUSED.values()):
        assert re.search("train|serve", reason)


def test_scale_and_ranks_of_adalora() -> None:
    kept = {"a.q_proj.lora_E": [True, False, True], "a.k_proj.lora_E": [False] * 3}
    config = parse(peft_type="ADALORA", init_r=3, lora_alpha=6, rank_pattern=kept)
    assert [config.rank_for(name) for name in ("a.q_proj", "a.k_proj", "a.v_proj")] == [2, 0, 3]
    assert config.scale_for("a.q_proj") == 6 / (3 + 1e-5)


@pytest.mark.parametrize(
    ("fields", "variant"),
    [
        ({}, "lora"),
        ({"use_dora": True}, "dora"),
        ({"use_dora": True, "init_lora_weights": "pissa"}, "dora"),
        ({"kasa_config": {"beta": 1}}, "kasa"),
        ({"use_bdlora": {"nblocks": 2}}, "bdlora"),
        ({"alora_invocation_tokens": [1]}, "alora"),
        ({"velora_config": {"scale": 1}}, "velora"),
        ({"monteclora_config": {"num_samples": 1}}, "monteclora"),
        ({"peft_type": "ADALORA"}, "adalora"),
    ],
)
def test_variants_have_short_names(fields: dict[str, Any], variant: str) -> None:
    assert parse(**fields).variant == variant
