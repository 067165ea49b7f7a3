"""How many parameters a run trains: counted by name and shape, as PEFT would make them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from training.plan.facts import BaseFacts, Linear
from training.spec import LoraSpec, TaskName

_CLASSIFIERS = ("classifier", "score")


@dataclass(frozen=True, slots=True)
class Trainable:
    """Numbers of parameters.

    Attributes:
        adapter: in A and B, and what a method adds to them.
        biases: of the base that train.
        whole: in copies of modules that are trained whole.
        total: of the base with all that training adds.
    """

    adapter: int
    biases: int
    whole: int
    total: int

    @property
    def trainable(self) -> int:
        return self.adapter + self.biases + self.whole

    @property
    def share(self) -> float:
        return self.trainable / self.total


def count(base: BaseFacts, lora: LoraSpec, task: TaskName = "CAUSAL_LM") -> Trainable:
    """What trains of this base. (EVA moves rank between layers when it has seen data: its sum is near this.)

    Raises:
        ValueError: `lora` names no linear layer of the base.
    """
    layers = adapted(base, lora, task)
    values = sum(_values(layer, lora) for layer in layers)
    wrapped = {layer.name for layer in layers}
    copies = sum(
        size
        for name, size in base.sizes.items()
        if any(_within(name, module) for module in whole_modules(lora, task))
    )
    biases = 0
    if lora.bias != "none":
        biases = sum(
            size
            for name, size in base.sizes.items()
            if name.rpartition(".")[2] == "bias"
            and (lora.bias == "all" or name.rpartition(".")[0] in wrapped)
            and not any(_within(name, module) for module in whole_modules(lora, task))
        )
    frozen = sum(_frozen(layer, lora) for layer in layers)
    return Trainable(values, biases, copies, base.parameters + values + copies + frozen)


def adapted(base: BaseFacts, lora: LoraSpec, task: TaskName = "CAUSAL_LM") -> tuple[Linear, ...]:
    """The layers that get an adapter.

    Raises:
        ValueError: `lora` names none.
    """
    targets = lora.target_modules
    if targets == "all-linear":
        found = [linear for linear in base.linears if linear.name in base.everywhere]
    elif isinstance(targets, str) and targets != "default":
        found = [linear for linear in base.linears if re.fullmatch(targets, linear.name)]
    else:
        names = base.usual if targets == "default" else targets
        found = [linear for linear in base.linears if any(_ends(linear.name, name) for name in names)]
    stacks = base.stacks if targets == "all-linear" and not lora.layers else ()
    kept = [
        linear
        for linear in (*found, *stacks)
        if not any(_within(linear.name, module) for module in whole_modules(lora, task))
        and (not lora.layers or layer_of(linear.name) in lora.layers)
    ]
    if not kept:
        known = sorted({linear.name.rpartition(".")[2] for linear in base.linears})
        raise ValueError(
            f"target_modules {_said(targets)}: {base.model_type} has no such linear layer; "
            f"it has {', '.join(known)}"
        )
    return tuple(kept)


def whole_modules(lora: LoraSpec, task: TaskName) -> tuple[str, ...]:
    """Those that are trained whole; the new head of a classifier always is."""
    heads = _CLASSIFIERS if task in ("SEQ_CLS", "TOKEN_CLS") else ()
    return (*lora.modules_to_save, *heads)


def rank_of(layer: Linear, lora: LoraSpec) -> int:
    """The rank that it begins with."""
    for pattern, rank in lora.rank_pattern.items():
        if re.match(rf"(.*\.)?({pattern})$", layer.name):
            return rank
    # AdaLoRA begins with half as many directions again as it keeps: training/methods/adalora.py.
    begin = max(lora.rank + 1, round(1.5 * lora.rank)) if lora.method == "adalora" else lora.rank
    return begin * layer.scale


def rank_for_share(base: BaseFacts, lora: LoraSpec, share: float) -> int:
    """The rank at which adapters on these layers have `share` of the base's parameters."""
    per_rank = sum((layer.inputs + layer.outputs) * layer.experts for layer in adapted(base, lora))
    return round(share * base.parameters / per_rank)


def layer_of(name: str) -> int | None:
    """The number of the layer that a module is in: the first in its name, as in `training/targets.py`."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _values(layer: Linear, lora: LoraSpec) -> int:
    rank = rank_of(layer, lora)
    values = rank * (layer.inputs + layer.outputs) * layer.experts
    if lora.method == "dora":
        values += layer.outputs
    if lora.method == "adalora":
        values += rank
    return values


def _frozen(layer: Linear, lora: LoraSpec) -> int:
    """AdaLoRA keeps each module's rank as a parameter."""
    return 1 if lora.method == "adalora" else 0


def _ends(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _within(name: str, module: str) -> bool:
    return f".{module}." in f".{name}."


def _said(targets: str | Iterable[str]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)
