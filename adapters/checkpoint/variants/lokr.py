"""LoKr: the Kronecker product of two small matrices, each whole or in two factors.

    W += alpha / r * kron(W1, W2)

Yeh et al. 2023, LyCORIS (arXiv 2309.14859). `kron(B1 A1, B2 A2) = kron(B1, B2) kron(A1, A2)`, so that
the product of both ranks is exact; a whole matrix counts as itself times the identity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.base import BaseSpec, LinearSpec
from adapters.checkpoint.variants.common import BaseWeights, boolean, by_module, fault
from adapters.checkpoint.variants.factors import MAX_RANK, alphas, check_rank, part, ranks, record
from adapters.delta import ModuleDelta
from adapters.errors import InvalidAdapter

APPLIED = frozenset({"r", "alpha", "rank_pattern", "alpha_pattern", "decompose_both", "decompose_factor"})
NO_EFFECT = {
    "rank_dropout": "off outside training",
    "rank_dropout_scale": "off outside training",
    "module_dropout": "off outside training",
    "use_effective_conv2d": "for convolutions; what is wrapped here is linear",
    "init_weights": "used to initialise only",
}
REFUSED: dict[str, str] = {}
_NAMES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


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
        InvalidAdapter: the files are not a LoKr adapter for this base.
        AdapterTooLarge: a module's rank is over `max_rank`.
    """
    rank_of, alpha_of = ranks(raw, 8), alphas(raw, 8)
    factor, both = _factor(raw), boolean(raw, "decompose_both")
    deltas = {}
    for module, parts in by_module(tensors, _NAMES, raw, base).items():
        linear, r = base.linears[module], rank_of(module)
        shapes = _shapes(linear, factor)
        # As PEFT decides it: the second matrix is in factors wherever that is smaller, the first on request.
        whole = (not (both and r < max(shapes[0]) / 2), r >= max(shapes[1]) / 2)
        rank = math.prod(min(s) if w else r for s, w in zip(shapes, whole, strict=True))
        check_rank(module, rank, max_rank, f"LoKr with r = {r} and decompose_factor = {factor}")
        expected = {
            name
            for index, w in enumerate(whole, 1)
            for name in ([f"lokr_w{index}"] if w else [f"lokr_w{index}_a", f"lokr_w{index}_b"])
        }
        for name in parts:
            if name not in expected:
                raise InvalidAdapter(f"tensor '{module}.{name}' does not belong to LoKr with this config")
        (a1, b1), (a2, b2) = (
            _pair(parts, module, f"lokr_w{index}", shapes[index - 1], None if whole[index - 1] else r)
            for index in (1, 2)
        )
        deltas[module] = record(
            module, linear, (torch.kron(a1, a2), torch.kron(b1, b2)), alpha_of(module) / r
        )
    return deltas


def _pair(
    parts: Mapping[str, Tensor], module: str, name: str, shape: tuple[int, int], r: int | None
) -> tuple[Tensor, Tensor]:
    """`A` and `B` of one matrix `B A` of this shape, which is whole in the file if `r` is None."""
    if r is not None:
        return part(parts, module, f"{name}_b", (r, shape[1])), part(
            parts, module, f"{name}_a", (shape[0], r)
        )
    matrix = part(parts, module, name, shape)
    if shape[0] < shape[1]:
        return matrix, torch.eye(shape[0])
    return torch.eye(shape[1]), matrix


def _factor(raw: Mapping[str, Any]) -> int:
    value = raw.get("decompose_factor", -1)
    if type(value) is not int or (value < 1 and value != -1):
        raise fault(f"decompose_factor must be -1 or an integer of at least 1, not {value!r:.60}")
    return value


def _shapes(linear: LinearSpec, factor: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of both matrices, `(out, in)` each."""
    (out1, out2), (in1, in2) = (split(size, factor) for size in (linear.out_features, linear.in_features))
    return (out1, in1), (out2, in2)


def split(size: int, factor: int) -> tuple[int, int]:
    """PEFT's `factorization`: `factor` and the rest if it divides `size`.

    Else the divisors nearest to the square root, the smaller first and at most `factor` (-1: no bound).
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    bound = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    smaller = next(divisor for divisor in range(bound, 0, -1) if size % divisor == 0)
    return smaller, size // smaller
