"""TinyLoRA: one short vector mixes fixed random matrices between two frozen factors of W.

    y += B (sum_i v[i] P[i]) A x

arXiv 2602.04118. A, B and (with `save_projection`) P are in the file; several modules may share one
`v`. Exact at rank `r`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import (
    BaseWeights,
    boolean,
    by_module,
    check_shape,
    fault,
    number,
    positive,
)
from adapters.checkpoint.variants.factors import MAX_RANK, one_rank, part, record, shared
from adapters.delta import ModuleDelta
from adapters.errors import InvalidAdapter

APPLIED = frozenset({"r", "u", "weight_tying", "save_projection"})
NO_EFFECT = {
    "projection_seed": "what P was made from, which is in the file",
    "init_v_bound": "used to initialise v only",
    "tinylora_dropout": "off outside training",
    "fan_in_fan_out": "how the base stores its weight",
    "init_weights": "used to initialise only",
}
REFUSED: dict[str, str] = {}
_VECTOR = "tinylora_v."


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
        InvalidAdapter: the files are not a TinyLoRA adapter for this base, or one without its projections.
        AdapterTooLarge: `r` is over `max_rank`.
    """
    if not boolean(raw, "save_projection", True):
        raise fault(
            "save_projection false leaves out random matrices that differ between machines; load it where it "
            "was trained, set save_projection to true and save again"
        )
    r, u = one_rank(raw, 2, max_rank), positive(raw.get("u", 64), "u")
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_VECTOR)}
    found = by_module(own, ("tinylora_A", "tinylora_B", "tinylora_P"), raw, base)
    group_of = _groups(raw, in_order(found, base))
    unused = {name for name in tensors if name.startswith(_VECTOR)} - set(group_of.values())
    if unused:
        raise InvalidAdapter(f"tensor {min(unused)!r} is of no module with this config; correct weight_tying")
    deltas = {}
    for module, parts in found.items():
        linear = base.linears[module]
        rank = min(r, linear.in_features, linear.out_features)
        a = part(parts, module, "tinylora_A", (rank, linear.in_features))
        b = part(parts, module, "tinylora_B", (linear.out_features, rank))
        projections = part(parts, module, "tinylora_P", (u, rank, rank))
        v = check_shape(group_of[module], shared(tensors, group_of[module]), (u,)).float()
        deltas[module] = record(module, linear, (torch.einsum("i,ijk->jk", v, projections) @ a, b))
    return deltas


def in_order(modules: Collection[str], base: BaseSpec) -> list[str]:
    """`modules` in the order of the base's own definition, by which PEFT numbers them."""
    names = (name.removesuffix(".weight") for name in base.parameters)
    return [name for name in dict.fromkeys(names) if name in modules]


def _groups(raw: Mapping[str, Any], modules: list[str]) -> dict[str, str]:
    """The name of each module's vector: neighbours share one, the more of them the larger `weight_tying`."""
    tying = number(raw.get("weight_tying", 0.0), "weight_tying")
    if not 0 <= tying <= 1:
        raise fault(f"weight_tying must be from 0 to 1, not {tying}")
    groups = max(1, round(len(modules) * (1.0 - tying)))
    size = max(1, len(modules) // groups)
    return {name: f"{_VECTOR}{min(place // size, groups - 1)}" for place, name in enumerate(modules)}
