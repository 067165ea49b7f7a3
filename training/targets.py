"""Which modules a LoRA adapter is put on: defaults by model type, and what to say where they do not fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ALL_LINEAR = "all-linear"
DEFAULT = "default"

# As PEFT's TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING (0.21) where it knows the type; for the others,
# what makes queries and values.
_DEFAULTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3_text", "opt", "gpt_neo"): (
        "q_proj",
        "v_proj",
    ),
    ("qwen2_moe", "qwen3_moe", "gpt_oss"): ("q_proj", "v_proj"),
    ("deepseek_v3",): ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    ("phi3",): ("qkv_proj",),
    ("gpt2",): ("c_attn",),
    ("gpt_neox",): ("query_key_value",),
    ("t5", "mt5", "umt5"): ("q", "v"),
    ("bert", "roberta", "xlm-roberta"): ("query", "value"),
    ("deberta",): ("in_proj",),
    ("deberta-v2",): ("query_proj", "value_proj"),
}


def resolve_targets(
    model: nn.Module, model_type: str, targets: str | Iterable[str], layers: Collection[int] = ()
) -> str | list[str]:
    """What PEFT is told as `target_modules`.

    Args:
        targets: names (in full, or what follows a dot), a regular expression over full names, `all-linear`,
            or `default` for the modules that are usual for `model_type`.
        layers: numbers of the layers whose modules are meant; empty: all. With them the result is full names.

    Raises:
        ValueError: they name no linear layer of `model`; it lists those that there are.
    """
    found = _resolve(model, model_type, targets)
    if not layers:
        return found
    numbers = {layer_of(name) for name, _ in model.named_modules()} - {None}
    missing = sorted(set(layers) - numbers)
    if missing:
        there = max(number for number in numbers if number is not None)
        raise ValueError(f"layers {_said(missing)}: {model_type} has the layers 0 to {there}")
    names = [name for name in targeted(model, found) if layer_of(name) in layers]
    if not names:
        asked = targets if isinstance(targets, str) else _said(targets)
        raise ValueError(f"target_modules {asked}: none is in the layers {_said(sorted(layers))}")
    return names


def targeted(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Full names of the linear layers that `resolve_targets`'s answer means."""
    linears = _linears(model)
    if targets == ALL_LINEAR:
        head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
        return [name for name in linears if model.get_submodule(name) is not head]
    if isinstance(targets, str):
        return [name for name in linears if re.fullmatch(targets, name)]
    return [name for name in linears if _matches(targets, [name])]


def layer_of(name: str) -> int | None:
    """The number of the layer that a module is in: the first number in its name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _resolve(model: nn.Module, model_type: str, targets: str | Iterable[str]) -> str | list[str]:
    if targets == ALL_LINEAR:
        return ALL_LINEAR
    linears = _linears(model)
    if targets == DEFAULT:
        targets = [name for name in _usual(model_type, linears) if _matches([name], linears)]
    if isinstance(targets, str):
        try:
            fits = any(re.fullmatch(targets, linear) for linear in linears)
        except re.error as error:
            raise ValueError(f"target_modules {targets!r} is no regular expression: {error}") from None
        if not fits:
            raise ValueError(f"target_modules {targets!r} matches none of {_known(model_type, linears)}")
        return targets
    names = list(targets)
    unknown = [name for name in names if not _matches([name], linears)]
    if unknown:
        raise ValueError(f"target_modules {_said(unknown)}: not among {_known(model_type, linears)}")
    return names


def _linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _said(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def _usual(model_type: str, linears: Collection[str]) -> tuple[str, ...]:
    found = next((names for types, names in _DEFAULTS.items() if model_type in types), None)
    if found is None:
        raise ValueError(
            f"there are no default target_modules for {model_type}: say all-linear, or name some of "
            f"{_known(model_type, linears)}"
        )
    return found


def _matches(names: Iterable[str], linears: Iterable[str]) -> bool:
    return any(linear == name or linear.endswith(f".{name}") for linear in linears for name in names)


def _known(model_type: str, linears: Iterable[str]) -> str:
    kinds = sorted({linear.rpartition(".")[2] for linear in linears})
    return f"the linear layers of {model_type}: {', '.join(kinds)}"
