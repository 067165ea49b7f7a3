"""An adapter in the form in which it is computed with: cast, scaled, and grouped by shared input.

Modules that read the same input (query, key and value projections; gate and up projections) form a group.
Their `A` matrices are stored side by side, so that one product serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from adapters.delta import AdapterWeights, all_finite
from adapters.errors import InvalidAdapter

Groups = Sequence[tuple[str, ...]]
"""Module names that share an input, in the order in which the model calls them."""


@dataclass(frozen=True, eq=False)
class Placed:
    """One adapter version ready to compute with, in the form that its batch wants. `nbytes`: its size."""

    digest: str
    nbytes: int

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
    """

    groups: Mapping[int, PlacedGroup]
    parameters: int
    modules: int

    def to(self, device: torch.device) -> Self:
        """Copies from pinned memory do not block."""
        groups = {
            index: PlacedGroup(
                group.at.to(device, non_blocking=True),
                tuple(
                    part and PlacedPart(part.start, part.stop, part.bt.to(device, non_blocking=True))
                    for part in group.parts
                ),
            )
            for index, group in self.groups.items()
        }
        return replace(self, groups=groups)

    def tensors(self) -> Iterator[Tensor]:
        for group in self.groups.values():
            yield group.at
            yield from (part.bt for part in group.parts if part)


def place(weights: AdapterWeights, groups: Groups, dtype: torch.dtype, *, pin: bool = False) -> PlacedAdapter:
    """Put `weights` into computing form on the CPU (`pin`: in page-locked memory).

    The scale goes into `B` before the cast, so the cast rounds the product once.

    Raises:
        InvalidAdapter: a value is too large for `dtype`; as an infinity it would reach other rows of a step.
    """
    placed = {
        index: group
        for index, names in enumerate(groups)
        if (group := _place_group(weights, names, dtype, pin)) is not None
    }
    bts = [part.bt for group in placed.values() for part in group.parts if part]
    parameters = sum(t.numel() for t in [*bts, *(group.at for group in placed.values())])
    return PlacedAdapter(weights.digest, parameters * dtype.itemsize, placed, parameters, len(bts))


def _place_group(
    weights: AdapterWeights, names: tuple[str, ...], dtype: torch.dtype, pin: bool
) -> PlacedGroup | None:
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
        parts.append(PlacedPart(row, row + delta.rank, bt.pin_memory() if pin else bt))
        stacked.append(a)
        row += delta.rank
    if not stacked:
        return None
    at = stack_columns([a.t() for a in stacked])
    return PlacedGroup(at.pin_memory() if pin else at, tuple(parts))


def stack_columns(matrices: Sequence[Tensor]) -> Tensor:
    """Join `(rows, columns)` matrices side by side, stored as a product with few rows likes it.

    In float32 on a CPU, `x @ at` with `at` stored by rows is up to 4 times faster than with its transpose; in
    bfloat16 it is the other way round for a single row and equal for more.
    """
    if matrices[0].dtype == torch.float32:
        return torch.cat(list(matrices), dim=1)
    return torch.cat([matrix.t() for matrix in matrices]).t()
