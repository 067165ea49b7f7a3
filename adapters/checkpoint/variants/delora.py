"""DeLoRA: rank-one terms of fixed size, whose common strength is trained.

    W += sum_i lambda / r * b_i a_i^T / (|b_i| |a_i|) * norm      (norm: of each column of W)

Bini et al. 2025 (arXiv 2503.18225). Exact at rank `r`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import BaseWeights, by_module
from adapters.checkpoint.variants.factors import MAX_RANK, check_rank, part, ranks, record
from adapters.delta import ModuleDelta

APPLIED = frozenset({"r", "rank_pattern"})
NO_EFFECT = {
    "delora_lambda": "used to initialise lambda only",
    "lambda_pattern": "used to initialise lambda only",
    "module_dropout": "off outside training",
    "init_weights": "used to initialise only",
}
REFUSED: dict[str, str] = {}
# PEFT divides by no smaller norm.
_SMALLEST = 1e-4


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
        InvalidAdapter: the files are not a DeLoRA adapter for this base.
        AdapterTooLarge: a module's `r` is over `max_rank`.
    """
    rank_of = ranks(raw, 8)
    deltas = {}
    names = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
    for module, parts in by_module(tensors, names, raw, base).items():
        linear, r = base.linears[module], rank_of(module)
        check_rank(module, r, max_rank, f"r = {r}")
        a = part(parts, module, "delora_A", (r, linear.in_features))
        b = part(parts, module, "delora_B", (linear.out_features, r))
        strength = part(parts, module, "delora_lambda", (1,))
        norm = part(parts, module, "delora_w_norm", (linear.in_features,))
        sizes = a.norm(dim=1).clamp(min=_SMALLEST) * b.norm(dim=0).clamp(min=_SMALLEST)
        deltas[module] = record(module, linear, (a * norm, b * (strength / r / sizes)))
    return deltas
