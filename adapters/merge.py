"""Merged copies: `W' = W + scale * B A`, always computed from the pristine `W`, which is never written to.

Merging in place and un-merging later does not give the old weights back: in bfloat16 a hundred rounds
changed a third of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.batched import BatchedLinear
from adapters.delta import AdapterWeights, ModuleDelta
from adapters.linear import LinearMap, make_linear


@dataclass(frozen=True, slots=True)
class MergedCopy:
    """Linear maps with one adapter in them, beside the base's own. `nbytes`: of their weights."""

    digest: str
    linears: Mapping[BatchedLinear, LinearMap]
    nbytes: int

    def install(self) -> None:
        """Have the modules use them where a step says so. Not while a step runs."""
        for module, linear in self.linears.items():
            module.merged = linear

    def remove(self) -> None:
        """The modules forget them."""
        for module in self.linears:
            module.merged = None


def merged_weight(weight: Tensor, delta: ModuleDelta) -> Tensor:
    """A new tensor `W + scale * B A`, computed in float32 and rounded once to the type of `W`."""
    a, b = delta.a.to(weight.device).float(), delta.b.to(weight.device).float()
    return torch.addmm(weight.float(), b, a, alpha=delta.scale).to(weight.dtype)


def merge(
    modules: Iterable[BatchedLinear], adapter: AdapterWeights, pause: Callable[[], None] = lambda: None
) -> MergedCopy:
    """A merged map for every module that `adapter` targets; `pause` is called after each of them."""
    linears: dict[BatchedLinear, LinearMap] = {}
    nbytes = 0
    for module in modules:
        delta = adapter.deltas.get(module.name)
        if delta is not None:
            weight = module.weight
            # No wider than the base's own: as merging into the checkpoint would round it, and as fast.
            merged = merged_weight(weight.to(module.linear.stored), delta).to(weight.dtype)
            linears[module] = make_linear(merged, module.bias)
            nbytes += merged.numel() * module.linear.stored.itemsize
            pause()
    return MergedCopy(adapter.digest, linears, nbytes)


def build_merged(modules: Iterable[BatchedLinear], adapter: AdapterWeights) -> int:
    """Give every module that `adapter` targets a merged copy of its weight. Returns the bytes they take."""
    modules = list(modules)
    copy = merge(modules, adapter)
    for module in modules:
        module.merged = None
    copy.install()
    return copy.nbytes
