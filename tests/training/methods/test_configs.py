"""What PEFT is told for a spec, and what is refused of a base before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from tests.server.engine.seq2seq.stand import make_t5
from tests.tiny import make_model
from tests.training.methods.stand import spec_for
from training.methods.configs import peft_config


def model_of(family: str, untrained: tuple[str, ...] = ()) -> Any:
    model = make_t5(family) if family == "t5" else make_model(family)
    model.untrained = list(untrained)
    return model


def config_for(model: Any, task: Any = "CAUSAL_LM", steps: int = 10, **lora: Any) -> LoraConfig:
    config = peft_config(model, spec_for(task, **lora), steps)
    assert isinstance(config, LoraConfig)
    return config


def refused(family: str, task: Any = "CAUSAL_LM", **lora: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        config_for(model_of(family), task, **lora)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("lora", {"use_rslora": False, "use_dora": False, "init_lora_weights": True}),
        ("qlora", {"use_rslora": False, "use_dora": False, "init_lora_weights": True}),
        ("rslora", {"use_rslora": True}),
        ("dora", {"use_dora": True}),
        ("lora-ga", {"init_lora_weights": "lora_ga"}),
        ("pissa", {"init_lora_weights": "pissa"}),
        ("olora", {"init_lora_weights": "olora"}),
        ("eva", {"init_lora_weights": "eva"}),
    ],
)
def test_each_method_has_its_fields(method: str, fields: dict[str, Any]) -> None:
    config = config_for(model_of("llama"), method=method, rank=3, alpha=6.0, dropout=0.1, bias="none")
    assert {name: getattr(config, name) for name in fields} == fields
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (3, 6.0, 0.1, "none")


def test_adalora_aims_at_the_rank() -> None:
    config = config_for(model_of("llama"), method="adalora", rank=4, steps=100)
    assert isinstance(config, AdaLoraConfig)
    assert (config.init_r, config.target_r) == (6, 4)
    assert (config.tinit, config.tfinal, config.total_step) == (10, 30, 100)
    assert config.tinit < config.total_step - config.tfinal


def adapted(model: Any, config: LoraConfig) -> list[str]:
    wrapped = get_peft_model(model, config)
    prefix = "base_model.model."
    return [
        name.removeprefix(prefix) for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)
    ]


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "up_proj"), r".*(q_proj|up_proj)"])
def test_layers_by_number(targets: Any) -> None:
    model = model_of("llama")
    names = adapted(model, config_for(model, target_modules=targets, layers=(0, 2)))
    assert names
    assert {name.split(".")[2] for name in names} == {"0", "2"}
    if targets != "all-linear":
        assert {name.rpartition(".")[2] for name in names} == {"q_proj", "up_proj"}
    else:
        assert len(names) == 14


def test_ranks_and_scales_by_pattern() -> None:
    model = model_of("llama")
    patterns: dict[str, Any] = {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 5},
        "alpha_pattern": {"v_proj": 3.0},
    }
    wrapped = get_peft_model(model, config_for(model, rank=4, alpha=8.0, **patterns))
    layers = {name: module for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)}
    ranks = {name.split("layers.")[1]: layer.r["default"] for name, layer in layers.items()}
    assert (ranks["0.self_attn.q_proj"], ranks["1.mlp.up_proj"], ranks["0.mlp.up_proj"]) == (2, 5, 4)
    scales = {name.split("layers.")[1]: layer.scaling["default"] for name, layer in layers.items()}
    assert (scales["2.self_attn.v_proj"], scales["2.self_attn.k_proj"]) == (0.75, 2.0)


def test_parts_that_the_checkpoint_lacks_are_trained_whole() -> None:
    model = model_of("llama", untrained=("model.norm.weight", "score.weight"))
    config = config_for(model, "SEQ_CLS", modules_to_save=("embed_tokens",))
    assert config.modules_to_save == ["embed_tokens", "model.norm"]  # PEFT adds the head itself


def test_transposed_layers_are_known() -> None:
    assert config_for(model_of("gpt2")).fan_in_fan_out
    assert not config_for(model_of("llama")).fan_in_fan_out


def test_experts_are_adapted_where_peft_can() -> None:
    assert config_for(model_of("mixtral")).target_modules == "all-linear"
    for method in ("dora", "adalora", "lora-ga", "pissa", "olora", "eva"):
        message = refused("mixtral", method=method)
        assert message.startswith(
            f"{method} can't train the experts of mixtral, which are one parameter: name"
        )
        config_for(model_of("mixtral"), method=method, target_modules=("q_proj",))


@pytest.mark.parametrize(
    ("family", "lora", "message"),
    [
        ("llama", {"modules_to_save": ("heed",)}, "modules_to_save heed: llama has no such module"),
        ("llama", {"bias": "all"}, "bias all: llama has no biases to train; say none"),
        (
            "llama",
            {"rank_pattern": {"c_attn": 2}},
            "rank_pattern c_attn: no adapted module of llama matches it",
        ),
        (
            "llama",
            {"target_modules": ("q_proj",), "alpha_pattern": {"v_proj": 2.0}},
            "alpha_pattern v_proj: no adapted module of llama matches it",
        ),
        (
            "llama",
            {"rank_pattern": {"q_proj": 2, "self_attn.q_proj": 3}},
            "rank_pattern: q_proj and self_attn.q_proj match the same module; make them apart",
        ),
        ("llama", {"layers": (1, 7)}, "layers 7: llama has the layers 0 to 2"),
        (
            "qwen3_moe",
            {"layers": (9,), "target_modules": ("gate_proj",)},
            "layers 9: qwen3_moe has the layers 0 to 2",
        ),
        (
            "llama",
            {"layers": (1,), "target_modules": ("lm_head",)},
            "target_modules lm_head: none is in the layers 1",
        ),
        (
            "gpt2",
            {"method": "olora"},
            "olora can't begin on transformer.h.0.attn.c_attn, a layer with its weight transposed: "
            "take pissa or lora",
        ),
        (
            "llama",
            {"method": "pissa", "rank": 25},
            "pissa: rank 25 is more than model.layers.0.self_attn.k_proj can begin with; at most 24 there",
        ),
        (
            "llama",
            {"method": "lora-ga", "rank": 8, "rank_pattern": {"k_proj": 13}},
            "lora-ga: rank 13 is more than model.layers.0.self_attn.k_proj can begin with; at most 12 there",
        ),
        (
            "t5",
            {"target_modules": ("q_proj",)},
            "target_modules q_proj: not among the linear layers of t5: k, lm_head, o, q, v, wi, wo",
        ),
    ],
)
def test_what_the_base_does_not_have_is_refused(family: str, lora: dict[str, Any], message: str) -> None:
    task = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    assert refused(family, task, **lora) == message
