"""HRA: the input passes through a chain of trained Householder reflections.

    y = W H_1 ... H_r x + b,   H_i = I - 2 u_i u_i^T,  |u_i| = 1

Yuan et al. 2024 (arXiv 2405.17484). The chain is `I - U T U^T` with T upper triangular (Schreiber and
Van Loan 1989, compact WY), so that it is exact at rank `r`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import BaseWeights, boolean, by_module
from adapters.checkpoint.variants.factors import MAX_RANK, one_rank, part, record
from adapters.delta import ModuleDelta

APPLIED = frozenset({"r", "apply_GS"})
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
        InvalidAdapter: the files are not an HRA adapter for this base.
        AdapterTooLarge: `r` is over `max_rank`.
    """
    r, orthogonal = one_rank(raw, 8, max_rank), boolean(raw, "apply_GS")
    deltas = {}
    for module, parts in by_module(tensors, ("hra_u",), raw, base).items():
        linear = base.linears[module]
        u = part(parts, module, "hra_u", (linear.in_features, r))
        u, t = (_gram_schmidt(u), 2 * torch.eye(r)) if orthogonal else _compact(u)
        deltas[module] = record(module, linear, (u.T, -(weights(f"{module}.weight") @ u @ t)))
    return deltas


def _compact(u: Tensor) -> tuple[Tensor, Tensor]:
    """`U` with columns of length 1, and `T`."""
    u = u / u.norm(dim=0)
    t = 2 * torch.eye(u.shape[1])
    for i in range(1, u.shape[1]):
        t[:i, i] = -2 * t[:i, :i] @ (u[:, :i].T @ u[:, i])
    return u, t


def _gram_schmidt(u: Tensor) -> Tensor:
    """The columns of `u` made orthonormal, one after another, each against those before it in turn."""
    columns: list[Tensor] = []
    for column in u.T:
        for other in columns:
            column = column - (other @ column) * other
        columns.append(column / column.norm())
    return torch.stack(columns, dim=1)
