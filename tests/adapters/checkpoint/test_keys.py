"""Tensor names: which module each belongs to, and nothing left over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.base import BaseSpec, LinearSpec
from adapters.checkpoint.config import AdapterConfig, parse_config
from adapters.checkpoint.keys import PREFIX, sort_names, view_for
from adapters.errors import InvalidAdapter
from adapters.limits import AdapterLimits


def config(**fields: Any) -> AdapterConfig:
    text = json.dumps({"peft_type": "LORA", "target_modules": ["q"]} | fields)
    return parse_config(text.encode(), AdapterLimits())


@pytest.mark.parametrize("form", [PREFIX + "{}.{}.weight", "{}.{}.weight", PREFIX + "{}.{}.default.weight"])
def test_pairs_by_module(form: str) -> None:
    keys = [form.format(module, part) for part in ("lora_B", "lora_A") for module in ("h.1.q", "h.0.q")]
    names = sort_names(keys, config())
    assert list(names.modules.items()) == [
        (module, {"A": form.format(module, "lora_A"), "B": form.format(module, "lora_B")})
        for module in ("h.0.q", "h.1.q")
    ]
    assert sorted(names.used()) == sorted(keys)


PAIR = ["q.lora_A.weight", "q.lora_B.weight"]


@pytest.mark.parametrize(
    ("fields", "key", "where"),
    [
        ({"use_dora": True}, "q.lora_magnitude_vector", ("modules", "q", "magnitude_vector")),
        ({"use_dora": True}, "q.lora_magnitude_vector.weight", ("modules", "q", "magnitude_vector")),
        ({"lora_bias": True}, "q.lora_B.bias", ("modules", "q", "bias")),
        ({"kasa_config": {"beta": 1}}, "q.lora_diag", ("modules", "q", "diag")),
        ({"modules_to_save": ["norm"]}, "h.0.input_norm.weight", ("saved", "h.0.input_norm", "weight")),
        ({"modules_to_save": ["cls"]}, "cls.out.bias", ("saved", "cls", "out.bias")),
        ({"bias": "all"}, "q.base_layer.bias", ("biases", "q")),
        ({"bias": "all"}, "h.0.norm.bias", ("biases", "h.0.norm")),
        ({"trainable_token_indices": [1]}, "e.token_adapter.trainable_tokens_delta", ("tokens", "e")),
        ({}, "e.base_layer.weight", ("copies", "e.weight")),
        ({}, "e.weight", ("copies", "e.weight")),
    ],
)
def test_the_place_of_each_name(fields: dict[str, Any], key: str, where: tuple[str, ...]) -> None:
    place: Any = sort_names([*PAIR, key], config(**fields))
    for step in where:
        place = getattr(place, step) if hasattr(place, step) else place[step]
    assert place == key


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"velora_config": {"scale": 1}}, "q.lora_velora_embed"),
        ({"monteclora_config": {"num_samples": 1}}, "q.lora_monteclora_sampler.std_prior"),
        ({"modules_to_save": ["norm"], "bias": "all"}, "norm.original_module.bias"),
    ],
)
def test_what_only_training_needs(fields: dict[str, Any], key: str) -> None:
    names = sort_names([*PAIR, key], config(**fields))
    assert names.unused == {key}
    assert key not in names.used()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "hold no tensors"),
        (["q.lora_A.weight"], "has no lora_B beside it"),
        (["q.lora_B.weight"], "has no lora_A beside it"),
        (["q.lora_embedding_A"], "(lora_embedding_A) has no lora_embedding_B beside it"),
        (["q.lora_A.weight", "base_model.model.q.lora_B.weight"], "tensor 'q.lora_A.weight'"),
        (["lora_A.weight"], "tensor 'lora_A.weight'"),
        (["q.lora_A"], "unknown tensor 'q.lora_A'"),
        (["q.lora_A.weight\n", "q.lora_B.weight"], r"unknown tensor 'q.lora_A.weight\n'"),
        (["q.lora_A.weight", "q.lora_A.default.weight"], "another adapter"),
        ([*PAIR, "q.lora_magnitude_vector"], "a magnitude of DoRA, but adapter_config.json has use_dora off"),
        ([*PAIR, "q.lora_B.bias"], "a bias on lora_B, but adapter_config.json has lora_bias off"),
        ([*PAIR, "q.lora_diag"], "singular values of KaSA, but adapter_config.json has kasa_config off"),
        ([*PAIR, "k.bias"], 'a trained bias, but adapter_config.json has bias="none"'),
        ([*PAIR, "q.lora_velora_embed"], "adapter_config.json has no velora_config"),
        ([*PAIR, "q.lora_monteclora_sampler.std_prior"], "adapter_config.json has no monteclora_config"),
        (
            [*PAIR, "embed.token_adapter.trainable_tokens_delta"],
            "trained tokens, but adapter_config.json has no trainable_token_indices",
        ),
        ([*PAIR, "e.weight", "e.base_layer.weight"], "are the same parameter; remove one"),
        ([*PAIR, "base_model.vera_A"], "unknown tensor"),
    ],
)
def test_refused(keys: list[str], message: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        sort_names(keys, config())
    assert message in str(caught.value)


def test_tensors_of_other_tuners_are_left_to_their_readers() -> None:
    keys = ["base_model.vera_A", "base_model.model.h.0.q.vera_lambda_b", "base_model.model.cls.weight"]
    names = sort_names(keys, config(peft_type="VERA", modules_to_save=["cls"]))
    assert names.tuner == {"h.0.q.vera_lambda_b": keys[1], "vera_A": keys[0]}
    assert names.saved == {"cls": {"weight": keys[2]}}


@pytest.mark.parametrize(
    ("base", "file"), [("model.h.0.q", "h.0.q"), ("h.0.q", "roberta.h.0.q"), ("h.0.q", "h.0.q")]
)
def test_a_base_of_another_class(base: str, file: str) -> None:
    spec = BaseSpec(
        "tiny", "", {base: LinearSpec(base, 4, 4)}, frozenset({base[:-2]}), {f"{base}.bias": (4,)}
    )
    view = view_for(spec, sort_names([f"{file}.lora_A.weight", f"{file}.lora_B.weight"], config()))
    assert [*view.base.linears] == [file]
    assert [*view.base.parameters] == [f"{file}.bias"]
    assert view.own(file) == base
