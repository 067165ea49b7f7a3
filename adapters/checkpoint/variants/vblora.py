"""VB-LoRA: A and B are put together of short vectors from one bank, mixed by trained logits.

Li et al. 2024 (arXiv 2405.15179). Each piece is the softmax-weighted sum of the `topk` vectors of the bank
with the largest logits. Exact at rank `r`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import BaseWeights, boolean, by_module, check_shape, fault, positive
from adapters.checkpoint.variants.factors import MAX_RANK, indices, one_rank, part, record, shared
from adapters.delta import ModuleDelta

APPLIED = frozenset({"r", "num_vectors", "vector_length", "topk", "save_only_topk_weights"})
NO_EFFECT = {
    "vblora_dropout": "off outside training",
    "fan_in_fan_out": "how the base stores its weight",
    "init_vector_bank_bound": "used to initialise only",
    "init_logits_std": "used to initialise only",
}
REFUSED: dict[str, str] = {}
_BANK = "vblora_vector_bank"


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
        InvalidAdapter: the files are not a VB-LoRA adapter for this base.
        AdapterTooLarge: `r` is over `max_rank`.
    """
    r, count = one_rank(raw, 4, max_rank), positive(raw.get("num_vectors", 256), "num_vectors")
    length, topk = (
        positive(raw.get("vector_length", 256), "vector_length"),
        positive(raw.get("topk", 2), "topk"),
    )
    if topk > count:
        raise fault(f"topk {topk} is over num_vectors {count}")
    bank = check_shape(_BANK, shared(tensors, _BANK), (count, length)).float()
    only_topk = boolean(raw, "save_only_topk_weights")
    endings = ("_topk_indices", "_topk_weights") if only_topk else ("",)
    names = [f"vblora_logits_{side}{ending}" for side in "AB" for ending in endings]
    own = {name: tensor for name, tensor in tensors.items() if name != _BANK}
    deltas = {}
    for module, parts in by_module(own, names, raw, base).items():
        linear = base.linears[module]
        if linear.in_features % length or linear.out_features % length:
            raise fault(f"vector_length {length} does not divide the inputs and outputs of {module}")
        pieces = {"A": (r, linear.in_features // length), "B": (linear.out_features // length, r)}
        mixed = {
            side: _mix(parts, module, f"vblora_logits_{side}", shape, bank, topk, only_topk)
            for side, shape in pieces.items()
        }
        a, b = mixed["A"].flatten(1), mixed["B"].transpose(1, 2).reshape(-1, r)
        deltas[module] = record(module, linear, (a, b))
    return deltas


def _mix(
    parts: Mapping[str, Tensor],
    module: str,
    name: str,
    shape: tuple[int, int],
    bank: Tensor,
    topk: int,
    only_topk: bool,
) -> Tensor:
    """`(*shape, vector_length)`: the weighted sums of vectors."""
    if only_topk:
        known = part(parts, module, f"{name}_topk_weights", (*shape, topk - 1))
        # The last weight is not saved: all of them sum to 1.
        weights = torch.cat([known, 1 - known.sum(-1, keepdim=True)], dim=-1)
        rows = indices(parts, module, f"{name}_topk_indices", (*shape, topk), bank)
    else:
        largest, rows = part(parts, module, name, (*shape, len(bank))).topk(topk, dim=-1)
        weights = largest.softmax(-1)
    mixed = bank.new_zeros(*shape, bank.shape[1])
    for place in range(topk):  # not all at once: that would take topk times the memory
        mixed += weights[..., place, None] * bank[rows[..., place]]
    return mixed
