"""Uni-LoRA: every entry of every A and B is one of a few trained numbers, by a fixed random table.

    A[i, j] = theta[index[i, j]] / sqrt(how often theta[index[i, j]] is used)

arXiv 2506.00799. Exact at rank `r`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import (
    BaseWeights,
    Targets,
    boolean,
    by_module,
    check_shape,
    check_targets,
    fault,
    positive,
)
from adapters.checkpoint.variants.factors import MAX_RANK, indices, one_rank, part, record, shared
from adapters.checkpoint.variants.tinylora import in_order
from adapters.checkpoint.variants.vera import seed
from adapters.delta import ModuleDelta
from adapters.errors import InvalidAdapter

APPLIED = frozenset({"r", "proj_seed", "theta_d_length", "save_indices"})
NO_EFFECT = {
    "unilora_dropout": "off outside training",
    "fan_in_fan_out": "how the base stores its weight",
    "init_theta_d_bound": "used to initialise only",
    "init_weights": "used to initialise only",
}
REFUSED: dict[str, str] = {}
_THETA = "unilora_theta_d"
_NAMES = ("unilora_indices_A", "unilora_scales_A", "unilora_indices_B", "unilora_scales_B")


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
        InvalidAdapter: the files are not a Uni-LoRA adapter for this base.
        AdapterTooLarge: `r` is over `max_rank`.
    """
    r, length = one_rank(raw, 4, max_rank), positive(raw.get("theta_d_length", 256), "theta_d_length")
    theta = check_shape(_THETA, shared(tensors, _THETA), (length,)).float()
    own = {name: tensor for name, tensor in tensors.items() if name != _THETA}
    if boolean(raw, "save_indices"):
        return _saved(raw, own, base, theta, r)
    if own:
        raise InvalidAdapter(f"tensor {min(own)!r} is not used with save_indices=false; set it to true")
    return _generated(raw, base, theta, r)


def _saved(
    raw: Mapping[str, Any], tensors: Mapping[str, Tensor], base: BaseSpec, theta: Tensor, r: int
) -> dict[str, ModuleDelta]:
    """With the tables that are in the file."""
    deltas = {}
    for module, parts in by_module(tensors, _NAMES, raw, base).items():
        linear = base.linears[module]
        factors = []
        for side, shape in (("A", (r, linear.in_features)), ("B", (linear.out_features, r))):
            rows = indices(parts, module, f"unilora_indices_{side}", shape, theta)
            factors.append(theta[rows] * part(parts, module, f"unilora_scales_{side}", shape))
        deltas[module] = record(module, linear, (factors[0], factors[1]))
    return deltas


def _generated(raw: Mapping[str, Any], base: BaseSpec, theta: Tensor, r: int) -> dict[str, ModuleDelta]:
    """With tables made from `proj_seed`, one after another in the base's own order, A before B."""
    targets = Targets.parse(raw)
    modules = in_order([module for module in base.linears if targets.holds(module)], base)
    check_targets(modules, targets, base)
    if not modules:
        raise fault(f"target_modules matches no linear layer of {base.name}")
    shapes = [
        shape
        for module in modules
        for shape in ((r, base.linears[module].in_features), (base.linears[module].out_features, r))
    ]
    sizes = [rows * columns for rows, columns in shapes]
    rows = _table(sum(sizes), len(theta), seed(raw, "proj_seed", 42))
    scaled = theta * torch.bincount(rows, minlength=len(theta)).clamp(min=1).float().rsqrt()
    chunks = torch.split(rows, sizes)
    made = (scaled[chunk].reshape(shape) for chunk, shape in zip(chunks, shapes, strict=True))
    return {
        module: record(module, base.linears[module], pair)
        for module, pair in zip(modules, _pairs(made), strict=True)
    }


def _pairs(factors: Iterable[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    each = iter(factors)
    return zip(each, each, strict=True)


def _table(count: int, length: int, seed: int) -> Tensor:
    """`(count,)` numbers below `length`, all equally often up to one, shuffled: as PEFT draws them."""
    random = np.random.default_rng(seed)
    table = np.repeat(np.arange(length), count // length)
    if count % length:
        table = np.concatenate([table, random.choice(length, size=count % length, replace=False)])
    random.shuffle(table)
    return torch.as_tensor(table, dtype=torch.long)
