"""Going on from an adapter that there is, in its own shape."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from training.methods.patterns import slow_pattern
from training.spec import LoraSpec, TrainSpec, require

_BEGINNINGS = ("lora-ga", "pissa", "olora", "eva")
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FREE = ("method", "dropout")
_OTHER_LAYERS = (
    "kasa_config",
    "use_bdlora",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "layer_replication",
    "lora_bias",
)


def go_on_from(model: Any, spec: TrainSpec, parent: Path) -> PeftModel:
    """The adapter in `parent` on the base, all of it trained on.

    Raises:
        ValueError: it is of a kind that can't be trained on, or of another shape than the spec's.
    """
    for file in (_CONFIG, _WEIGHTS):  # what is not there PEFT would look for on the hub
        require((parent / file).is_file(), f"{parent.name} is no adapter to go on from: it has no {file}")
    config = PeftConfig.from_pretrained(str(parent))
    slow = slow_pattern(config)
    require(slow is None, f"the adapter to go on from can't be trained on: {slow}")
    _check(config, spec)
    config.inference_mode = False
    config.lora_dropout = spec.lora.dropout
    try:
        wrapped = get_peft_model(model, config)
        result = set_peft_model_state_dict(wrapped, load_file(parent / _WEIGHTS))
    except (RuntimeError, ValueError) as error:  # other modules, or other shapes
        reason = " ".join(str(error).split())
        raise ValueError(f"the adapter to go on from does not fit this base: {reason:.200}") from None
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    strange = [*result.unexpected_keys, *sorted(trained & set(result.missing_keys))]
    require(not strange, f"the adapter to go on from does not fit this base: {', '.join(strange[:3])}")
    wrapped.fixed_ranks = True
    return wrapped


def _check(config: PeftConfig, spec: TrainSpec) -> None:
    method, lora = spec.lora.method, spec.lora
    kind = _kind(config)
    require(method not in _BEGINNINGS, f"{method} is a way to begin; to go on from an adapter say lora")
    require(
        method in ("lora", "qlora", kind),
        f"the adapter to go on from is {kind}, not {method}: say lora, or {kind}",
    )
    task = getattr(config.task_type, "value", config.task_type)
    require(task in (None, spec.task), f"the adapter to go on from is for {task}, not for {spec.task}")
    own = {
        "rank": getattr(config, "target_r" if kind == "adalora" else "r", None),
        "alpha": config.lora_alpha,
        "bias": config.bias,
        "rank_pattern": config.rank_pattern or {},
        "alpha_pattern": config.alpha_pattern or {},
        "modules_to_save": set(config.modules_to_save or ()),
        "target_modules": config.target_modules,
    }
    for field in fields(LoraSpec):
        asked = getattr(lora, field.name)
        if field.name in _FREE or asked == getattr(LoraSpec(), field.name):
            continue
        there = own.get(field.name)
        asked = set(asked) if isinstance(asked, tuple) else asked
        require(asked == there, f"the adapter to go on from has its own {field.name}: leave {field.name} out")


def _kind(config: PeftConfig) -> str:
    """The method that trains this kind on.

    Raises:
        ValueError: none does.
    """
    if isinstance(config, AdaLoraConfig):
        return "adalora"
    name = str(getattr(config.peft_type, "value", config.peft_type))
    require(
        isinstance(config, LoraConfig), f"an adapter of the kind {name} can't be trained on: begin a new one"
    )
    assert isinstance(config, LoraConfig)
    other = next((field for field in _OTHER_LAYERS if getattr(config, field, None)), None)
    require(other is None, f"an adapter with {other} can't be trained on: begin a new one")
    init = config.init_lora_weights
    plain = isinstance(init, bool) or init in ("gaussian", "orthogonal", "eva")
    require(
        plain, f"an adapter that was saved with init_lora_weights {init!r} changes the base: begin a new one"
    )
    return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"
