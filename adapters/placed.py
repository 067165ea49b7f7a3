"""An adapter in the form in which it is computed with: cast, scaled, and grouped by shared input.

Modules that read the same input (query, key and value projections; gate and up projections) form a group.
Their `A` matrices are stored side by side, so that one product serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from adapters.delta import AdapterWeights, all_finite
from adapters.errors import InvalidAdapter
from adapters.extras import Extras

Groups = Sequence[tuple[str, ...]]
"""Module names that share an input, in the order in which the model calls them."""

_ALIGNMENT = 16  # bytes at whose multiples the matrices begin, as GPUs read them fastest


@dataclass(frozen=True, eq=False)
class Placed:
    """One adapter version ready to compute with, in the form that its batch wants.

    Attributes:
        nbytes: its size, `extras` included.
        extras: what it does beside its linear deltas, if anything.
    """

    digest: str
    nbytes: int
    extras: Extras | None = field(default=None, kw_only=True)

    def to(self, device: torch.device) -> Self:
        """The same adapter on `device`."""
        raise NotImplementedError

    def tensors(self) -> Iterator[Tensor]:
        """All that `to` copies."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class PlacedPart:
    """One module's share of a group: columns `start:stop` of its `at`, and `bt = scale * B^T`."""

    start: int
    stop: int
    bt: Tensor


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
        memory: one tensor that holds all matrices, so that they move in one copy.
    """

    groups: Mapping[int, PlacedGroup]
    parameters: int
    modules: int
    memory: Tensor

    def to(self, device: torch.device) -> Self:
        """A copy from pinned memory does not block."""
        memory = self.memory.to(device, non_blocking=True)
        groups = _each(self.groups, lambda m: memory.as_strided(m.shape, m.stride(), m.storage_offset()))
        extras = self.extras and self.extras.to(device)
        return replace(self, groups=groups, memory=memory, extras=extras)

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
    memory, placed = _gather(placed, dtype, pin)
    bts = [part.bt for group in placed.values() for part in group.parts if part]
    parameters = sum(t.numel() for t in [*bts, *(group.at for group in placed.values())])
    return PlacedAdapter(weights.digest, memory.nbytes, placed, parameters, len(bts), memory)


def _gather(
    groups: Mapping[int, PlacedGroup], dtype: torch.dtype, pin: bool
) -> tuple[Tensor, dict[int, PlacedGroup]]:
    """One tensor with copies of all matrices, and the groups made of these: each lies as it did."""
    matrices = [m for g in groups.values() for m in (g.at, *(part.bt for part in g.parts if part))]
    step = _ALIGNMENT // dtype.itemsize
    *starts, size = accumulate((-(-m.numel() // step) * step for m in matrices), initial=0)
    memory = torch.empty(size, dtype=dtype, pin_memory=pin)
    start = dict(zip(map(id, matrices), starts, strict=True))
    return memory, _each(groups, lambda m: memory.as_strided(m.shape, m.stride(), start[id(m)]).copy_(m))


def _each(groups: Mapping[int, PlacedGroup], change: Callable[[Tensor], Tensor]) -> dict[int, PlacedGroup]:
    """The groups with `change` of every matrix."""
    return {
        index: PlacedGroup(
            change(group.at),
            tuple(part and PlacedPart(part.start, part.stop, change(part.bt)) for part in group.parts),
        )
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
        if not (all_finite(a) and all_finite(bt)):
            raise InvalidAdapter(
                f"adapter {weights.digest[:12]}: {name} has values too large for the base's {dtype}"
            )
        parts.append(PlacedPart(row, row + delta.rank, bt))
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
