"""DEFT: a part of what W puts out is projected away, and a trained part put in its place.

    W += P (s R - D^T W),   D = relu(P), or P = D = qr(P);   without R where `para` is on

"Decompositional Efficient Fine-Tuning", NeurIPS 2025, as PEFT computes it. Exact at rank `r`, with the base's
own weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import BaseWeights, boolean, by_module, fault, number
from adapters.checkpoint.variants.factors import MAX_RANK, one_rank, part, record
from adapters.delta import ModuleDelta

APPLIED = frozenset({"r", "decomposition_method", "alpha", "para"})
NO_EFFECT = {
    "init_scale": "used to initialise only",
    "init_weights": "used to initialise only",
    "deft_dropout": "off outside training",
    "fan_in_fan_out": "how the base stores its weight",
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
        InvalidAdapter: the files are not a DEFT adapter for this base.
        AdapterTooLarge: `r` is over `max_rank`.
    """
    r, para = one_rank(raw, 8, max_rank), boolean(raw, "para")
    method = raw.get("decomposition_method", "relu")
    if method not in ("relu", "qr"):
        raise fault(f'decomposition_method must be "relu" or "qr", not {method!r:.60}')
    alpha = number(raw.get("alpha") or 0, "alpha")
    names = ("deft_P",) if para else ("deft_P", "deft_R")
    deltas = {}
    for module, parts in by_module(tensors, names, raw, base).items():
        linear = base.linears[module]
        rank = min(r, linear.out_features)
        p = part(parts, module, "deft_P", (linear.out_features, rank))
        if method == "qr":
            p = torch.linalg.qr(p).Q
        removed = p.relu() if method == "relu" else p
        a = -(removed.T @ weights(f"{module}.weight"))
        if not para:
            # No alpha, and 0 too, is a scale of 1.
            a += (alpha / rank if alpha else 1.0) * part(parts, module, "deft_R", (rank, linear.in_features))
        deltas[module] = record(module, linear, (a, p))
    return deltas
