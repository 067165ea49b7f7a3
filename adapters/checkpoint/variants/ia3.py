"""(IA)^3: one trained vector a module, which scales its output, or the input of feed-forward modules.

Liu et al. 2022 (arXiv 2205.05638), section 3.3. As in PEFT the output is scaled with its bias. Exact, rank 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.patterns import NamePattern
from adapters.checkpoint.variants.common import BaseWeights, by_module, fault, name_list
from adapters.checkpoint.variants.factors import MAX_RANK, part, record
from adapters.delta import ModuleDelta

APPLIED = frozenset({"feedforward_modules"})
NO_EFFECT = {
    "fan_in_fan_out": "how the base stores its weight",
    "init_ia3_weights": "used to initialise only",
}
REFUSED: dict[str, str] = {}


def records(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    base: BaseSpec,
    weights: BaseWeights,
    *,
    max_rank: int = MAX_RANK,
) -> dict[str, ModuleDelta]:
    """Each wrapped module's record.

    Raises:
        InvalidAdapter: the files are not an (IA)^3 adapter for this base.
    """
    feedforward = _Feedforward(raw)
    deltas = {}
    for module, parts in by_module(tensors, ("ia3_l",), raw, base).items():
        linear = base.linears[module]
        if feedforward.holds(module):
            scale = part(parts, module, "ia3_l", (1, linear.in_features)).flatten()
            deltas[module] = record(module, linear, input_scale=scale)
        else:
            scale = part(parts, module, "ia3_l", (linear.out_features, 1)).flatten()
            deltas[module] = record(module, linear, magnitude=scale)
    return deltas


class _Feedforward:
    """Which modules have their input scaled: those whose name ends so, or that a pattern matches."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        value = raw.get("feedforward_modules")
        if value is None:
            raise fault(
                "feedforward_modules is missing; name them ([] if there are none), as PEFT saves them"
            )
        self._pattern = (
            NamePattern(value, "adapter_config.json: feedforward_modules") if isinstance(value, str) else None
        )
        self._endings = () if self._pattern else tuple(name_list(raw, "feedforward_modules"))

    def holds(self, module: str) -> bool:
        return self._pattern.matches(module) if self._pattern else module.endswith(self._endings)
