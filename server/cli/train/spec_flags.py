"""Each field of a training spec as a flag."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from server.cli.exits import Exit, Failed
from training import spec as specs
from training.spec import TrainSpec, spec_from_json


@dataclass(frozen=True, slots=True)
class _Flag:
    """`kind` reads the word; `choices`: the type whose values it may have."""

    help: str
    kind: Callable[[str], Any] | None = str
    metavar: str | None = None
    choices: Any = None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _targets(text: str) -> str | tuple[str, ...]:
    """One word may be a regular expression, `all-linear` or `default`; with commas they are names."""
    plain = text.replace(",", "").replace("_", "").replace(".", "").isalnum()
    return _names(text) if plain and text not in ("default",) else text


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _names(text))


def _table(value: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    def pairs(text: str) -> dict[str, Any]:
        parted = (pair.rpartition("=") for pair in _names(text))
        return {name: value(number) for name, _, number in parted}

    pairs.__name__ = "NAME=VALUE"  # argparse says it of a wrong one
    return pairs


_LORA = {
    "method": _Flag("how the adapter begins and what it learns", choices=specs.Method),
    "rank": _Flag("its rank", int, "R"),
    "alpha": _Flag("its scale is alpha / rank", float, "A"),
    "target_modules": _Flag(
        "all-linear, default, names with commas between, or a regular expression", _targets, "MODULES"
    ),
    "dropout": _Flag("share of the adapter's inputs that is left out while training", float, "P"),
    "bias": _Flag("biases of the base that are trained", choices=specs.Bias),
    "modules_to_save": _Flag("modules that are trained whole, with commas between", _names, "NAMES"),
    "layers": _Flag("numbers of the layers that get an adapter, with commas between", _numbers, "NUMBERS"),
    "rank_pattern": _Flag("ranks of modules that differ: q_proj=16,v_proj=4", _table(int), "PAIRS"),
    "alpha_pattern": _Flag("alphas of modules that differ", _table(float), "PAIRS"),
}
_RUN = {
    "task": _Flag("what is learned", choices=specs.TaskName),
    "objective": _Flag(
        "supervised, or dpo for rows with a chosen and a rejected answer", choices=specs.Objective
    ),
    "beta": _Flag("of dpo: how much moving away from the base costs", float, "B"),
    "epochs": _Flag("times that all rows are seen", int, "N"),
    "steps": _Flag("optimizer steps, in place of --epochs", int, "N"),
    "batch_size": _Flag("rows of one forward pass", int, "N"),
    "accumulation": _Flag("forward passes of one optimizer step", int, "N"),
    "learning_rate": _Flag("at its highest", float, "RATE"),
    "optimizer": _Flag("the optimizer", choices=specs.Optimizer),
    "schedule": _Flag("how the learning rate falls", choices=specs.Schedule),
    "warmup": _Flag("share of the steps in which the learning rate rises", float, "SHARE"),
    "weight_decay": _Flag("decay of the trained matrices", float, "W"),
    "max_grad_norm": _Flag("gradients with a larger norm are scaled down to it", float, "NORM"),
    "max_length": _Flag("tokens of a row; what is longer is cut", int, "N"),
    "evaluate_every": _Flag("steps between two evaluations (a tenth of the run)", int, "N"),
    "save_every": _Flag("steps between two checkpoints (as evaluations)", int, "N"),
    "patience": _Flag(
        "stop early after so many evaluations without a better validation loss, and keep the best", int, "N"
    ),
    "precision": _Flag("of the base; what is trained is float32", choices=specs.Precision),
    "device": _Flag("where to compute", choices=specs.DeviceName),
    "gradient_checkpointing": _Flag("compute activations twice, to keep less of them", None),
    "seed": _Flag("of the adapter's beginning, the order of rows and dropout", int, "N"),
}


def add_spec_flags(parser: argparse.ArgumentParser, several: Collection[str] = ()) -> None:
    """A flag for each field of `LoraSpec` and `TrainSpec`; those in `several` take lists, with commas."""
    for title, flags in (("adapter", _LORA), ("training", _RUN)):
        group = parser.add_argument_group(title)
        for name, flag in flags.items():
            _add(group, name, _list(flag) if name in several else flag)


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields whose flags were given, as `spec_from_json` takes them."""
    found = {name: getattr(arguments, name) for name in _RUN if getattr(arguments, name) is not None}
    lora = {name: getattr(arguments, name) for name in _LORA if getattr(arguments, name) is not None}
    return {**found, "lora": lora}


def make_spec(fields: Mapping[str, Any], beneath: Mapping[str, Any] | None = None) -> TrainSpec:
    """The spec of the given fields; what they leave out is taken from `beneath`.

    Raises:
        Failed: a value is wrong.
    """
    beneath = beneath or {}
    lora = {**beneath.get("lora", {}), **fields.get("lora", {})}
    try:
        return spec_from_json({**beneath, **fields, "lora": lora})
    except ValueError as error:
        raise Failed(str(error), Exit.USAGE) from None


def _list(flag: _Flag) -> _Flag:
    """The same for several values."""
    assert flag.kind is not None
    kind = flag.kind

    def values(text: str) -> list[Any]:
        return [kind(word) for word in _names(text)]

    values.__name__ = f"{kind.__name__}s with commas between"  # argparse says it of wrong ones
    return replace(flag, help=f"{flag.help}; several with commas", kind=values, metavar=f"{flag.metavar},...")


def _add(group: Any, name: str, flag: _Flag) -> None:
    option = f"--{name.replace('_', '-')}"
    if flag.kind is None:
        group.add_argument(option, action="store_true", default=None, help=flag.help)
        return
    choices = get_args(flag.choices) if flag.choices is not None else None
    metavar = None if choices else flag.metavar
    group.add_argument(option, type=flag.kind, choices=choices, metavar=metavar, help=flag.help)
