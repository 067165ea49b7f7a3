"""GraLoRA: W is cut into k by k blocks, each with an adapter of rank `r / k` of its own.

Jung et al. 2025 (arXiv 2505.20355). All blocks together are exact at rank `k * r`, and `hybrid_r`
more where there is an ordinary LoRA beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import BaseWeights, by_module, fault, number, positive
from adapters.checkpoint.variants.factors import MAX_RANK, check_rank, part, record
from adapters.delta import ModuleDelta

APPLIED = frozenset({"r", "hybrid_r", "alpha", "gralora_k"})
NO_EFFECT = {
    "gralora_dropout": "off outside training",
    "fan_in_fan_out": "how the base stores its weight",
    "init_weights": "used to initialise only",
}
REFUSED: dict[str, str] = {}
_NAMES = ("gralora_A", "gralora_B", "gralora_A_general.weight", "gralora_B_general.weight")


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
        InvalidAdapter: the files are not a GraLoRA adapter for this base.
        AdapterTooLarge: `k * r + hybrid_r` is over `max_rank`.
    """
    r, k = positive(raw.get("r", 32), "r"), positive(raw.get("gralora_k", 2), "gralora_k")
    hybrid = positive(raw["hybrid_r"], "hybrid_r") if raw.get("hybrid_r") else 0
    if r % k:
        raise fault(f"gralora_k {k} does not divide r {r}")
    scale = number(raw.get("alpha", 64), "alpha") / (r + hybrid)
    deltas = {}
    for module, parts in by_module(tensors, _NAMES if hybrid else _NAMES[:2], raw, base).items():
        linear = base.linears[module]
        check_rank(module, k * r + hybrid, max_rank, f"gralora_k = {k}, r = {r}, hybrid_r = {hybrid}")
        if linear.in_features % k or linear.out_features % k:
            raise fault(f"gralora_k {k} does not divide the inputs and outputs of {module}")
        a = part(parts, module, "gralora_A", (k, linear.in_features // k, r))
        b = part(parts, module, "gralora_B", (k, r, linear.out_features // k))
        down, up = torch.block_diag(*a.transpose(1, 2)), _spread(b, k)  # type: ignore[no-untyped-call]
        if hybrid:
            general = part(parts, module, _NAMES[2], (hybrid, linear.in_features))
            down = torch.cat([down, general])
            up = torch.cat([up, part(parts, module, _NAMES[3], (linear.out_features, hybrid))], dim=1)
        deltas[module] = record(module, linear, (down, up), scale)
    return deltas


def _spread(b: Tensor, k: int) -> Tensor:
    """`(out_features, k * r)`: each block of outputs reads its own part of what every block of inputs gives.

    Args:
        b: `(k, r, out_features // k)`, by block of outputs; its rows are by block of inputs, `r / k` each.
    """
    r, width = b.shape[1:]
    up = b.new_zeros(k, width, k, k, r // k)
    for block in range(k):
        up[block, :, :, block] = b[block].reshape(k, r // k, width).permute(2, 0, 1)
    return up.reshape(k * width, k * r)
