"""An adapter in the form in which it is computed with: cast, scaled, and grouped by shared input.

Modules that read the same input (query, key and value projections; gate and up projections) form a group.
Their `A` matrices are stored side by side, so that one product serves all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from adapters.batch.extras import Extras
from adapters.delta import AdapterWeights, all_finite
from adapters.errors import InvalidAdapter

Groups = Sequence[tuple[str, ...]]
"""Module names that share an input, in the order in which the model calls them."""

_ALIGNMENT = 16  # bytes at whose multiples the matrices begin, as GPUs read them fastest


@dataclass(frozen=True, eq=False)
class Placed(ABC):
    """One adapter version ready to compute with, in the form that its batch wants.

    Attributes:
        nbytes: its size, `extras` included.
        input_scales: float32 `(in_features,)`, what the base's input of a module is multiplied by, where that
            is not 1; by index of the group and the module's place in it.
        extras: what it does beside its linear deltas, if anything.
        invocation, members: as in `AdapterWeights`.
    """

    digest: str
    nbytes: int
    input_scales: Mapping[tuple[int, int], Tensor] = field(default_factory=dict, kw_only=True)
    extras: Extras | None = field(default=None, kw_only=True)
    invocation: tuple[int, ...] = field(default=(), kw_only=True)
    members: tuple[str, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same adapter on `device`."""

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """All that `to` copies."""


@dataclass(frozen=True, slots=True)
class PlacedPart:
    """One module's share of a group: columns `start:stop` of its `at`, and `bt = scale * B^T`.

    `magnitude` and `shift` are as in `ModuleDelta`.
    """

    start: int
    stop: int
    bt: Tensor
    magnitude: Tensor | None = None
    shift: Tensor | None = None

    def tensors(self) -> Iterator[Tensor]:
        """All that there are."""
        yield self.bt
        for term in (self.magnitude, self.shift):
            if term is not None:
                yield term

    def each(self, change: Callable[[Tensor], Tensor]) -> PlacedPart:
        """The same with `change` of every tensor."""
        magnitude = None if self.magnitude is None else change(self.magnitude)
        shift = None if self.shift is None else change(self.shift)
        return PlacedPart(self.start, self.stop, change(self.bt), magnitude, shift)


@dataclass(frozen=True, slots=True)
class PlacedGroup:
    """`at`: `A^T` of all parts, `(in_features, ranks)`; `parts`: one for each module, or None."""

    at: Tensor
    parts: tuple[PlacedPart | None, ...]


@dataclass(frozen=True, eq=False)
class PlacedAdapter(Placed):
    """One adapter version as torch tensors on one device. `groups` is keyed by group index.

    Attributes:
        parameters: numbers in its matrices, which is also the multiply-adds that one row costs.
        modules: how many modules it adds to.
        memory: the bytes of all tensors, so that they move in one copy.
    """

    groups: Mapping[int, PlacedGroup]
    parameters: int
    modules: int
    memory: Tensor

    def to(self, device: torch.device) -> Self:
        """A copy from pinned memory does not block."""
        memory = self.memory.to(device, non_blocking=True)

        def there(tensor: Tensor) -> Tensor:
            return _view(memory, tensor, int(tensor.storage_offset()) * tensor.itemsize)

        groups = _each(self.groups, there)
        scales = {module: there(scale) for module, scale in self.input_scales.items()}
        extras = self.extras and self.extras.to(device)
        return replace(self, groups=groups, input_scales=scales, memory=memory, extras=extras)

    def tensors(self) -> Iterator[Tensor]:
        yield self.memory
        if self.extras is not None:
            yield from self.extras.tensors()


def place(weights: AdapterWeights, groups: Groups, dtype: torch.dtype, *, pin: bool = False) -> PlacedAdapter:
    """Put `weights` into computing form on the CPU (`pin`: in page-locked memory).

    The scale goes into `B` before the cast, so the cast rounds the product once.

    Raises:
        InvalidAdapter: a value is too large for `dtype`; as an infinity it would reach other rows of a step.
    """
    placed = {
        index: group
        for index, names in enumerate(groups)
        if (group := _place_group(weights, names, dtype)) is not None
    }
    scales = place_input_scales(weights, groups)
    bts = [part.bt for group in placed.values() for part in group.parts if part]
    parameters = sum(t.numel() for t in [*bts, *(group.at for group in placed.values())])
    tensors = [*_tensors(placed), *scales.values()]
    *starts, size = accumulate((-(-t.nbytes // _ALIGNMENT) * _ALIGNMENT for t in tensors), initial=0)
    memory = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
    start = dict(zip(map(id, tensors), starts, strict=True))

    def inside(tensor: Tensor) -> Tensor:
        return _view(memory, tensor, start[id(tensor)]).copy_(tensor)

    return PlacedAdapter(
        weights.digest,
        memory.nbytes,
        _each(placed, inside),
        parameters,
        len(bts),
        memory,
        input_scales={module: inside(scale) for module, scale in scales.items()},
    )


def place_input_scales(weights: AdapterWeights, groups: Groups) -> dict[tuple[int, int], Tensor]:
    """As `Placed` wants them."""
    return {
        (index, member): delta.input_scale
        for index, names in enumerate(groups)
        for member, name in enumerate(names)
        if (delta := weights.deltas.get(name)) is not None and delta.input_scale is not None
    }


def _view(memory: Tensor, like: Tensor, start: int) -> Tensor:
    """The bytes of `memory` from `start` on as a tensor that lies as `like` does."""
    typed = memory.view(like.dtype)
    return typed.as_strided(like.shape, like.stride(), start // like.itemsize)


def _tensors(groups: Mapping[int, PlacedGroup]) -> Iterator[Tensor]:
    for group in groups.values():
        yield group.at
        for part in group.parts:
            if part is not None:
                yield from part.tensors()


def _each(groups: Mapping[int, PlacedGroup], change: Callable[[Tensor], Tensor]) -> dict[int, PlacedGroup]:
    """The groups with `change` of every tensor."""
    return {
        index: PlacedGroup(change(group.at), tuple(part and part.each(change) for part in group.parts))
        for index, group in groups.items()
    }


def _place_group(weights: AdapterWeights, names: tuple[str, ...], dtype: torch.dtype) -> PlacedGroup | None:
    stacked: list[Tensor] = []
    parts: list[PlacedPart | None] = []
    row = 0
    for name in names:
        delta = weights.deltas.get(name)
        if delta is None:
            parts.append(None)
            continue
        a, bt = delta.a.to(dtype), (delta.b.float() * delta.scale).t().to(dtype).contiguous()
        terms = (delta.magnitude, delta.shift, delta.input_scale)
        cast = [a, bt, *(term.to(dtype) for term in terms if term is not None)]
        if not all(map(all_finite, cast)):
            raise InvalidAdapter(
                f"adapter {weights.digest[:12]}: {name} has values too large for the base's {dtype}"
            )
        parts.append(PlacedPart(row, row + delta.rank, bt, delta.magnitude, delta.shift))
        stacked.append(a)
        row += delta.rank
    if not stacked:
        return None
    return PlacedGroup(stack_columns([a.t() for a in stacked]), tuple(parts))


def stack_columns(matrices: Sequence[Tensor]) -> Tensor:
    """Join `(rows, columns)` matrices side by side, stored as a product with few rows likes it.

    In float32 on a CPU, `x @ at` with `at` stored by rows is up to 4 times faster than with its transpose; in
    bfloat16 it is the other way round for a single row and equal for more.
    """
    if matrices[0].dtype == torch.float32:
        return torch.cat(list(matrices), dim=1)
    return torch.cat([matrix.t() for matrix in matrices]).t()
