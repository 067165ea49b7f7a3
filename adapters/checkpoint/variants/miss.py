"""MiSS: the input is folded into `r` sums, which one trained matrix spreads over the outputs.

    y += D^T fold(x),   fold(x)[j] = x[j] + x[j + r] + x[j + 2 r] + ...

Kang and Yin 2024 (arXiv 2409.15371); `mini` repeats the columns of D. Exact at rank `r`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.base import BaseSpec, LinearSpec
from adapters.checkpoint.variants.common import BaseWeights, by_module, fault, positive
from adapters.checkpoint.variants.factors import MAX_RANK, one_rank, part, record
from adapters.delta import ModuleDelta

APPLIED = frozenset({"r", "mini_r", "init_weights"})
NO_EFFECT = {"miss_dropout": "off outside training"}
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
        InvalidAdapter: the files are not a MiSS adapter for this base, or are `bat`, of full rank.
        AdapterTooLarge: `r` is over `max_rank`.
    """
    r, kind = one_rank(raw, 64, max_rank), raw.get("init_weights", True)
    if kind == "bat":
        raise fault(
            'init_weights "bat" gives an update of full rank; merge it into the base, or train with '
            "init_weights=true"
        )
    if not isinstance(kind, bool) and kind != "mini":
        raise fault(f'init_weights must be true, false or "mini", not {kind!r:.60}')
    deltas = {}
    for module, parts in by_module(tensors, ("miss_block",), raw, base).items():
        linear = base.linears[module]
        columns = _mini_r(raw, linear) if kind == "mini" else linear.out_features
        block = part(parts, module, "miss_block", (r, columns))
        fold = (torch.arange(linear.in_features) % r == torch.arange(r)[:, None]).float()
        deltas[module] = record(module, linear, (fold, block.repeat(1, linear.out_features // columns).T))
    return deltas


def _mini_r(raw: Mapping[str, Any], linear: LinearSpec) -> int:
    columns = positive(raw.get("mini_r", 1), "mini_r")
    if linear.out_features % columns:
        raise fault(f"mini_r {columns} does not divide the {linear.out_features} outputs of {linear.name}")
    return columns
