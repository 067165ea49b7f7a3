"""BEFT: one trained bias a module, added to what the base has. Exact, rank 0.

arXiv 2509.15974.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import BaseWeights, by_module
from adapters.checkpoint.variants.factors import MAX_RANK, part, record
from adapters.delta import ModuleDelta

APPLIED: frozenset[str] = frozenset()
NO_EFFECT = {"init_weights": "used to initialise only"}
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
        InvalidAdapter: the files are not a BEFT adapter for this base.
    """
    deltas = {}
    for module, parts in by_module(tensors, ("beft_bias",), raw, base).items():
        linear = base.linears[module]
        bias = part(parts, module, "beft_bias", (1, linear.out_features)).flatten()
        deltas[module] = record(module, linear, shift=bias)
    return deltas
