"""The one primitive that every adapter becomes: a low-rank delta for each module that it wraps.

    y = W x + scale * B (A x)

Formula: LoRA, Hu et al. 2021 (arXiv 2106.09685), section 4.1. `scale` is `alpha / r`, or `alpha / sqrt(r)`
for rank-stabilised LoRA (arXiv 2312.03732).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ModuleDelta:
    """The delta of one module. `a`: `(rank, in_features)`, `b`: `(out_features, rank)`, both contiguous."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether `A` and `scale * B`, the form that is computed with, are finite in `dtype`."""
        return all_finite(self.a.to(dtype)) and all_finite((self.b.float() * self.scale).to(dtype))


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One adapter version in memory, by qualified module name of the base (keys of `BaseSpec.linears`)."""

    digest: str
    deltas: Mapping[str, ModuleDelta]

    @property
    def nbytes(self) -> int:
        return sum(delta.nbytes for delta in self.deltas.values())

    @property
    def max_rank(self) -> int:
        return max((delta.rank for delta in self.deltas.values()), default=0)


def all_finite(tensor: Tensor) -> bool:
    """NaN and infinity survive a sum, which is ten times faster than looking at each value."""
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())
