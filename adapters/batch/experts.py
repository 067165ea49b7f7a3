"""Mixtures of experts in a mixed batch: each row's own deltas inside the experts and their router.

    rows ── router ── (row, expert) pairs, sorted by expert ── gate_up ── act ── down ── weighted sum
                                                                  │                │
                                             each adapter's own pairs: + scale * B[e] A[e] x

transformers keeps the weights of a layer's experts in two tensors, so that no linear layer is called there.
Steps in which no adapter has such deltas run the base's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import ExpertsSpec
from adapters.batch.batched import AdapterBatch
from adapters.batch.extras import Extras
from adapters.delta import ExpertsDelta

_ALIGNMENT = 16  # bytes at whose multiples the rows of a grouped product must begin


def find_experts(model: nn.Module) -> dict[str, ExpertsSpec]:
    """The parameters that adapters may add to, as `BaseSpec.experts`."""
    found: dict[str, ExpertsSpec] = {}
    for path, module in model.named_modules():
        if _is_experts(module):
            for name in (_first(module), "down_proj"):
                count, *shape = getattr(module, name).shape
                inputs, outputs = shape if module.is_transposed else reversed(shape)
                full = f"{path}.{name}"
                found[full] = ExpertsSpec(full, count, inputs, outputs, bool(module.is_transposed))
        elif _is_router(module):
            outputs, inputs = module.weight.shape
            found[f"{path}.weight"] = ExpertsSpec(f"{path}.weight", 1, inputs, outputs, router=True)
    return found


def attach_experts(model: nn.Module, batch: AdapterBatch[Any, Any]) -> None:
    """Have the experts and routers of `model` ask `batch` for the deltas of each step."""
    for path, module in model.named_modules():
        if _is_experts(module):
            module.__dict__["forward"] = BatchedExperts(path, module, batch).forward
        elif _is_router(module):
            module.__dict__["forward"] = BatchedRouter(path, module, batch).forward


def _is_experts(module: nn.Module) -> bool:
    """Whether it is of transformers' common form: `experts(hidden_states, top_k_index, top_k_weights)`."""
    if not hasattr(module, "is_transposed") or not hasattr(module, "has_gate"):
        return False
    weights = (getattr(module, _first(module), None), getattr(module, "down_proj", None))
    return all(isinstance(weight, nn.Parameter) and weight.dim() == 3 for weight in weights)


def _first(module: nn.Module) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def _is_router(module: nn.Module) -> bool:
    """Whether it is a router of its own class, from rows to tensors by rows."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("Router") or not isinstance(weight, nn.Parameter):
        return False
    needed = [p for p in signature(module.forward).parameters.values() if p.default is Parameter.empty]
    if weight.dim() != 2 or len(needed) != 1:
        return False
    with torch.inference_mode():
        outputs = module(weight.new_zeros(2, weight.shape[1]))
    return isinstance(outputs, tuple) and all(len(output) == 2 for output in outputs)


@dataclass(frozen=True, slots=True)
class _Owner:
    """An adapter of the step that has deltas here, and its rows, as half-open spans."""

    extras: Extras
    spans: list[tuple[int, int]]

    def rows(self, device: torch.device) -> Tensor:
        return torch.cat([torch.arange(*span, device=device) for span in self.spans])


def _owners(batch: AdapterBatch[Any, Any], names: tuple[str, ...]) -> list[_Owner]:
    """The adapters of the step in flight with a delta for any of `names`."""
    owners: dict[int, _Owner] = {}
    for segment in batch.token_segments:
        extras = segment.adapter.extras if segment.adapter is not None else None
        if extras is not None and any(name in extras.experts for name in names):
            owner = owners.setdefault(id(extras), _Owner(extras, []))
            owner.spans.append((segment.start, segment.stop))
    return list(owners.values())


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs of a row and an expert, sorted by expert.

    Attributes:
        places: `(pairs,)`, where each stands among all pairs of the step.
        ends: `(experts,)` int32, behind the last pair of each expert.
    """

    places: Tensor
    ends: Tensor

    @classmethod
    def of(cls, places: Tensor, experts: Tensor, count: int) -> _Pairs:
        """`experts`: of each pair, ascending; `count`: of the layer's experts."""
        bounds = torch.arange(count, device=experts.device)
        return cls(places, torch.searchsorted(experts, bounds, right=True).to(torch.int32))


class BatchedExperts:
    """Stands in for the forward of one layer's experts."""

    def __init__(self, path: str, module: nn.Module, batch: AdapterBatch[Any, Any]) -> None:
        self._module: Any = module
        self._batch = batch
        self._stock = module.forward
        self._first = _first(module)
        self._names = {name: f"{path}.{name}" for name in (self._first, "down_proj")}

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Args:
            hidden_states: `(rows, hidden_size)`.
            top_k_index, top_k_weights: `(rows, k)`, each row's experts and what their outputs count.

        Returns:
            `(rows, hidden_size)`
        """
        owners = _owners(self._batch, tuple(self._names.values()))
        if not owners:
            output: Tensor = self._stock(hidden_states, top_k_index, top_k_weights)
            return output
        module, k = self._module, top_k_index.shape[1]
        experts, order = top_k_index.reshape(-1).sort(stable=True)
        everything = _Pairs.of(order, experts, len(module.down_proj))
        own = [(owner.extras, self._own_pairs(owner, experts, order, k)) for owner in owners]
        y = self._project(self._first, hidden_states[order // k], experts, everything, own)
        y = module._apply_gate(y) if module.has_gate else module.act_fn(y)
        y = self._project("down_proj", y, experts, everything, own)
        if module.has_post_expert_norm:
            y = module.post_expert_norm(y)
        y = y * top_k_weights.reshape(-1)[order, None]
        summed = torch.empty_like(y).index_copy_(0, order, y).view(-1, k, y.shape[1]).sum(1)
        return summed.to(hidden_states.dtype)

    def _own_pairs(self, owner: _Owner, experts: Tensor, order: Tensor, k: int) -> _Pairs:
        """The owner's pairs; their places are among the sorted ones."""
        sorted_at = torch.empty_like(order)
        sorted_at[order] = torch.arange(len(order), device=order.device)
        places = sorted_at.view(-1, k)[owner.rows(order.device)].reshape(-1).sort().values
        return _Pairs.of(places, experts[places], len(self._module.down_proj))

    def _project(
        self, name: str, x: Tensor, experts: Tensor, pairs: _Pairs, own: list[tuple[Extras, _Pairs]]
    ) -> Tensor:
        """`x` of all pairs through the parameter `name`, each with its adapter's delta."""
        weight: Tensor = getattr(self._module, name)
        y = _grouped(x, weight if self._module.is_transposed else weight.transpose(1, 2), pairs.ends)
        if self._module.has_bias:
            y = y + getattr(self._module, f"{name}_bias")[experts]
        for extras, mine in own:
            delta = extras.experts.get(self._names[name])
            if delta is not None:
                y.index_add_(0, mine.places, _delta(delta, x[mine.places], mine.ends))
        return y


def _delta(delta: ExpertsDelta, x: Tensor, ends: Tensor) -> Tensor:
    shrunk = _grouped(x, delta.a.transpose(1, 2), ends)
    return _grouped(shrunk, delta.b.transpose(1, 2), ends) * delta.scale


def _grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Rows `ends[e - 1]:ends[e]` of `x`, `(rows, in)`, times `weights[e]`, `(in, out)`."""
    if _aligned(x) and _aligned(weights):
        return F.grouped_mm(x, weights, offs=ends)
    y = x.new_empty(x.shape[0], weights.shape[2])
    start = 0
    for weight, end in zip(weights, ends.tolist(), strict=True):
        if start < end:
            torch.mm(x[start:end], weight, out=y[start:end])
        start = end
    return y


def _aligned(tensor: Tensor) -> bool:
    wide = [step for step in tensor.stride() if step != 1]
    return len(wide) == tensor.dim() - 1 and all(step * tensor.itemsize % _ALIGNMENT == 0 for step in wide)


class BatchedRouter:
    """Stands in for the forward of one router: the rows of each adapter by `W + scale * B A`, and the rest.

    A router's own code does more than its product, and its weight is small: rows of one adapter go through
    that code together, with a weight made for them.
    """

    def __init__(self, path: str, module: nn.Module, batch: AdapterBatch[Any, Any]) -> None:
        self._module: Any = copy.copy(module)  # before its forward is replaced
        self._batch = batch
        self._name = f"{path}.weight"

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Args:
        hidden_states: `(rows, hidden_size)`, or with dimensions of one before them.
        """
        owners = _owners(self._batch, (self._name,))
        if not owners:
            stock: tuple[Tensor, ...] = self._module(hidden_states)
            return stock
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        parts, rows = zip(*self._parts(owners, x), strict=True)
        order = torch.cat(rows)
        return tuple(_unsorted(torch.cat(outputs), order) for outputs in zip(*parts, strict=True))

    def _parts(self, owners: list[_Owner], x: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """What the router says of some rows, and which they are."""
        rest = torch.ones(len(x), dtype=torch.bool)
        for owner in owners:
            rows, delta = owner.rows(x.device), owner.extras.experts[self._name]
            rest[owner.rows(rest.device)] = False
            changed = delta.b[0] @ delta.a[0] * delta.scale
            yield self._with(self._module.weight + changed)(x[rows]), rows
        rows = rest.nonzero()[:, 0].to(x.device)
        if len(rows):
            yield self._module(x[rows]), rows

    def _with(self, weight: Tensor) -> nn.Module:
        """The router with another weight; all else is shared."""
        twin: nn.Module = copy.copy(self._module)
        twin._parameters = {**twin._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
        return twin


def _unsorted(tensor: Tensor, order: Tensor) -> Tensor:
    """Row `i` of `tensor` as row `order[i]`."""
    return torch.empty_like(tensor).index_copy_(0, order, tensor)
