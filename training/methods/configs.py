"""PEFT's config for a spec, and what can't be said of this base, in one clear line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from peft import AdaLoraConfig, EvaConfig, LoraConfig, LoraGAConfig, PeftConfig, TaskType
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers.pytorch_utils import Conv1D

from training.combinations import CHANGES_BASE
from training.methods.adalora import schedule
from training.methods.loading import LABELLED
from training.spec import LoraSpec, TrainSpec, require
from training.targets import ALL_LINEAR, resolve_targets, targeted

ON_EXPERTS = ("lora", "rslora", "qlora")
_INITS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora-ga": {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "eva": {"init_lora_weights": "eva"},
}


def peft_config(model: Any, spec: TrainSpec, total_steps: int) -> PeftConfig:
    """What PEFT is told. `model`: the base from `load_base`.

    Raises:
        ValueError: the base does not have what the spec names, or the method can't do it on this base.
    """
    lora = spec.lora
    targets = resolve_targets(model, model.config.model_type, lora.target_modules, lora.layers)
    names = _wrapped(model, spec, targets)
    _check_names(model, spec, names)
    if targets == ALL_LINEAR and (spec.task in LABELLED or lora.method not in ON_EXPERTS):
        _check_experts(model, lora)
        targets = names
    options: dict[str, Any] = {
        "task_type": TaskType(spec.task),
        "target_modules": targets,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": lora.bias,
        "modules_to_save": _whole(model, spec) or None,
        "fan_in_fan_out": any(isinstance(model.get_submodule(name), Conv1D) for name in names),
    }
    if lora.method == "adalora":
        begin, tinit, tfinal = schedule(lora.rank, total_steps)
        return AdaLoraConfig(
            init_r=begin, target_r=lora.rank, tinit=tinit, tfinal=tfinal, total_step=total_steps, **options
        )
    options |= {"r": lora.rank, "rank_pattern": dict(lora.rank_pattern)}
    options |= {"alpha_pattern": dict(lora.alpha_pattern)} | _INITS.get(lora.method, {})
    if lora.method == "eva":
        options["eva_config"] = EvaConfig(use_label_mask=False)  # some tasks' labels are not one for a token
    _check_ranks(model, lora, names)
    return LoraConfig(**options)


def _wrapped(model: Any, spec: TrainSpec, targets: str | list[str]) -> list[str]:
    """Full names of the modules that get an adapter."""
    saved = [*spec.lora.modules_to_save, *_heads(spec)]
    found = targeted(model, targets)
    if targets == ALL_LINEAR and spec.task in LABELLED:
        saved.append("pooler")  # between the body and the head, and served with that
    return [name for name in found if not _holds(saved, name)]


def _whole(model: Any, spec: TrainSpec) -> list[str]:
    """Modules that are trained whole: those asked for, and those that the checkpoint does not have."""
    saved = [name for name in spec.lora.modules_to_save if name not in _heads(spec)]
    new = {name.rpartition(".")[0] for name in model.untrained}
    return [*saved, *sorted(name for name in new if not _holds([*saved, *_heads(spec)], name))]


def _heads(spec: TrainSpec) -> tuple[str, ...]:
    """What PEFT trains whole by itself."""
    return ("classifier", "score") if spec.task in LABELLED else ()


def _holds(saved: Iterable[str], name: str) -> bool:
    return any(f".{one}." in f".{name}." for one in saved)


def _check_names(model: Any, spec: TrainSpec, names: list[str]) -> None:
    """Names that PEFT would leave out without a word."""
    lora, kind = spec.lora, model.config.model_type
    modules = [name for name, _ in model.named_modules()]
    for name in lora.modules_to_save:
        there = any(module.endswith(name) for module in modules)  # as PEFT looks for it
        require(there, f"modules_to_save {name}: {kind} has no such module")
    for field, table in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        for pattern in table:
            there = any(_matches(pattern, name) for name in names)
            require(there, f"{field} {pattern}: no adapted module of {kind} matches it")
        # PEFT takes the first that matches, and its file does not keep the order.
        both = next(
            (found for name in names if len(found := [one for one in table if _matches(one, name)]) > 1), []
        )
        require(not both, f"{field}: {' and '.join(both)} match the same module; make them apart")
    if lora.bias != "none":
        biased = any(name.rpartition(".")[2] == "bias" for name, _ in model.named_parameters())
        require(biased, f"bias {lora.bias}: {kind} has no biases to train; say none")


def _check_experts(model: Any, lora: LoraSpec) -> None:
    """Of a mixture PEFT's `all-linear` means the experts too, and these take A and B alone."""
    probe = LoraConfig(r=1, target_modules=ALL_LINEAR)
    convert_peft_config_for_transformers(probe, model, None)
    require(
        not probe.target_parameters or lora.method in ON_EXPERTS,
        f"{lora.method} can't train the experts of {model.config.model_type}, which are one parameter: name "
        "other target_modules, such as q_proj and v_proj, or take lora",
    )


def _check_ranks(model: Any, lora: LoraSpec, names: list[str]) -> None:
    """Ranks that an initialisation can't fill, and layers that it can't begin on."""
    if lora.method not in CHANGES_BASE:
        return
    for name in names:
        module = model.get_submodule(name)
        conv = isinstance(module, Conv1D)
        require(
            not (conv and lora.method == "olora"),
            f"olora can't begin on {name}, a layer with its weight transposed: take pissa or lora",
        )
        rank = _first(lora.rank_pattern.items(), name, lora.rank)
        room = min(module.weight.shape) // (2 if lora.method == "lora-ga" else 1)
        require(
            rank <= room,
            f"{lora.method}: rank {rank} is more than {name} can begin with; at most {room} there",
        )


def _first(table: Iterable[tuple[str, int]], name: str, default: int) -> int:
    return next((rank for pattern, rank in table if _matches(pattern, name)), default)


def _matches(pattern: str, name: str) -> bool:
    """As PEFT looks a module up in its patterns."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None
