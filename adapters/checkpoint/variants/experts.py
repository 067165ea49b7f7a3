"""LoRA on the fused parameters of all experts (`target_parameters`), as PEFT lays its factors out.

A is `(experts * rank, in)`, expert by expert; B is `(out, rank * experts)`, whose last dimension counts the
experts within each direction. So it is for both ways round of storing the parameter; a router is one expert.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import text
from adapters.delta import ExpertsDelta
from adapters.errors import InvalidAdapter

_WRAPPER = ".base_layer"
_SWAPPED_SINCE = (0, 19)  # until then PEFT took the stored (out, in) of a parameter for (in, out)
Shape = tuple[int, ...]


def targeted_parameters(targets: tuple[str, ...], base: BaseSpec) -> dict[str, str]:
    """The parameters that `target_parameters` names, each with the module name that PEFT gives its factors.

    PEFT wraps a module once for each of its parameters, in the order in which the module has them, and each
    wrapper but the outermost is a `base_layer` of the next.

    Raises:
        InvalidAdapter: a name that fits no parameter of the base.
    """
    for target in targets:
        if not any(_named(parameter, target) for parameter in base.parameters):
            raise InvalidAdapter(
                f"adapter_config.json: target_parameters: {base.name} has no parameter {target!r:.100}"
            )
    by_module: dict[str, list[str]] = {}
    for parameter in base.parameters:
        if any(_named(parameter, target) for target in targets):
            by_module.setdefault(parameter.rpartition(".")[0], []).append(parameter)
    return {
        parameter: module + _WRAPPER * (len(parameters) - 1 - depth)
        for module, parameters in by_module.items()
        for depth, parameter in enumerate(parameters)
    }


def check_experts(
    parameter: str,
    parts: Mapping[str, str],
    shape_of: Callable[[str], Shape],
    rank: int,
    base: BaseSpec,
    raw: Mapping[str, Any],
) -> None:
    """See that the factors of `parameter` fit it.

    Raises:
        InvalidAdapter: they do not, or can't be told to.
    """
    spec = base.experts.get(parameter)
    if spec is None:
        raise InvalidAdapter(
            f"adapter_config.json: target_parameters: {parameter} is neither a parameter of all experts nor "
            f"a router of {base.name}; name linear layers in target_modules"
        )
    a, b = shape_of(parts["A"]), shape_of(parts["B"])
    wanted = (spec.experts * rank, spec.in_features), (spec.out_features, rank * spec.experts)
    swapped = (spec.experts * rank, spec.out_features), (spec.in_features, rank * spec.experts)
    may_be_old = not (spec.transposed or spec.router) and _version(raw) < _SWAPPED_SINCE
    if may_be_old and (a, b) == swapped:
        raise InvalidAdapter(
            f"tensor {parts['A']!r}: before PEFT 0.19 the layout of target_parameters was another one; load "
            "it with that version, and save it with a newer one"
        )
    if (a, b) != wanted:
        raise InvalidAdapter(
            f"tensors {parts['A']!r} and {parts['B']!r} have shapes {text(a)} and {text(b)}; {base.name} "
            f"needs {text(wanted[0])} and {text(wanted[1])} for {parameter} with rank {rank}"
        )


def experts_delta(a: Tensor, b: Tensor, experts: int, scale: float) -> ExpertsDelta:
    """The record of one parameter, from its factors as PEFT stores them."""
    return ExpertsDelta(
        a.reshape(experts, -1, a.shape[1]).contiguous(),
        b.reshape(b.shape[0], -1, experts).permute(2, 0, 1).contiguous(),
        scale,
    )


def _named(parameter: str, target: str) -> bool:
    return parameter == target or parameter.endswith(f".{target}")


def _version(raw: Mapping[str, Any]) -> tuple[int, int]:
    match = re.match(r"(\d{1,6})\.(\d{1,6})", str(raw.get("peft_version")))
    return (int(match[1]), int(match[2])) if match else (0, 0)
