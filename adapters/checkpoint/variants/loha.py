"""LoHa: the element-wise product of two low-rank matrices.

    W += alpha / r * (A1 B1) o (A2 B2)

Hyeon-Woo et al. 2021, FedPara (arXiv 2108.06098), proposition 1. A product of sums is the sum over all pairs,
so that factors of rank `r * r` are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import BaseWeights, by_module
from adapters.checkpoint.variants.factors import MAX_RANK, alphas, check_rank, part, ranks, record
from adapters.delta import ModuleDelta

APPLIED = frozenset({"r", "alpha", "rank_pattern", "alpha_pattern"})
NO_EFFECT = {
    "rank_dropout": "off outside training",
    "module_dropout": "off outside training",
    "use_effective_conv2d": "for convolutions; what is wrapped here is linear",
    "init_weights": "used to initialise only",
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
        InvalidAdapter: the files are not a LoHa adapter for this base.
        AdapterTooLarge: a module's `r * r` is over `max_rank`.
    """
    rank_of, alpha_of = ranks(raw, 8), alphas(raw, 8)
    deltas = {}
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    for module, parts in by_module(tensors, names, raw, base).items():
        linear, r = base.linears[module], rank_of(module)
        check_rank(module, r * r, max_rank, f"r = {r}, and LoHa needs its square")
        b1, b2 = (part(parts, module, name, (linear.out_features, r)) for name in names[::2])
        a1, a2 = (part(parts, module, name, (r, linear.in_features)) for name in names[1::2])
        b = (b1[:, :, None] * b2[:, None, :]).flatten(1)
        a = (a1[:, None, :] * a2[None, :, :]).flatten(0, 1)
        deltas[module] = record(module, linear, (a, b), alpha_of(module) / r)
    return deltas
