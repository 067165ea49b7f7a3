"""Merged copies: `W' = diag(magnitude) W diag(input_scale) + scale B A`, `b' = magnitude b + shift`.

They are always computed from the pristine `W`, which is never written to. Merging in place and un-merging
later does not give the old weights back: in bfloat16 a hundred rounds changed a third of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.batch.batched import BatchedLinear
from adapters.batch.linear import LinearMap, make_linear
from adapters.delta import AdapterWeights, ModuleDelta
from adapters.errors import AdapterError


@dataclass(frozen=True, slots=True)
class MergedCopy:
    """Linear maps with one adapter in them, beside the base's own. `nbytes`: of weights and new biases."""

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
    """A new tensor like `weight`, `(out_features, in_features)`, computed in float32 and rounded once."""
    base = weight.float()
    if delta.magnitude is not None:
        base = base * delta.magnitude.to(weight.device)[:, None]
    if delta.input_scale is not None:
        base = base * delta.input_scale.to(weight.device)
    a, b = delta.a.to(weight.device).float(), delta.b.to(weight.device).float()
    return torch.addmm(base, b, a, alpha=delta.scale).to(weight.dtype)


def merged_bias(bias: Tensor | None, delta: ModuleDelta, weight: Tensor) -> Tensor | None:
    """What goes with `merged_weight`, in the type of `weight`; `bias` itself where nothing changes it."""
    if delta.shift is None and (bias is None or delta.magnitude is None):
        return bias
    result = weight.new_zeros(weight.shape[0], dtype=torch.float32) if bias is None else bias.float()
    if delta.magnitude is not None:
        result = result * delta.magnitude.to(weight.device)
    if delta.shift is not None:
        result = result + delta.shift.to(weight.device)
    return result.to(weight.dtype)


def check_mergeable(adapter: AdapterWeights) -> None:
    """See to it that linear maps alone can hold all of `adapter`.

    Raises:
        AdapterError: they can't; it names what they can't hold.
    """
    parts = {
        "changes the embeddings": adapter.embeddings,
        "adds to the experts": adapter.experts,
        "replaces": adapter.replaced,
        "has a task head": adapter.head,
    }
    reasons = [f"it {what} {', '.join(names)}" for what, names in parts.items() if names]
    if adapter.invocation:
        reasons.append("it acts from its invocation tokens on only (aLoRA)")
    if reasons:
        raise AdapterError(
            f"adapter {adapter.digest[:12]} can't be merged: {'; '.join(reasons)}. Serve it without --merge"
        )


def merge(
    modules: Iterable[BatchedLinear], adapter: AdapterWeights, pause: Callable[[], None] = lambda: None
) -> MergedCopy:
    """A merged map for every module that `adapter` targets; `pause` is called after each of them.

    Raises:
        AdapterError: linear maps can't hold all of the adapter.
    """
    check_mergeable(adapter)
    linears: dict[BatchedLinear, LinearMap] = {}
    nbytes = 0
    for module in modules:
        delta = adapter.deltas.get(module.name)
        if delta is not None:
            weight = module.weight
            # No wider than the base's own: as merging into the checkpoint would round it, and as fast.
            merged = merged_weight(weight.to(module.linear.stored), delta).to(weight.dtype)
            bias = merged_bias(module.bias, delta, weight)
            linears[module] = make_linear(merged, bias)
            nbytes += merged.numel() * module.linear.stored.itemsize
            nbytes += 0 if bias is None or bias is module.bias else bias.nbytes
            pause()
    return MergedCopy(adapter.digest, linears, nbytes)


def build_merged(modules: Iterable[BatchedLinear], adapter: AdapterWeights) -> int:
    """Give every module that `adapter` targets a merged copy of its weight. Returns the bytes they take.

    Raises:
        AdapterError: linear maps can't hold all of the adapter.
    """
    modules = list(modules)
    copy = merge(modules, adapter)
    for module in modules:
        module.merged = None
    copy.install()
    return copy.nbytes
