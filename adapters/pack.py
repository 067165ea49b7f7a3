"""The adapters of one step, concatenated along the rank.

For a group of modules with the same input, the `A^T` matrices of all active adapters form one
`(in_features, total rank)` matrix: module by module, adapter by adapter. One product shrinks every token by
every adapter; a mask keeps each token's own columns; one product for each module expands. Ranks may differ,
nothing is padded or sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.placed import PlacedAdapter, PlacedGroup, PlacedPart, stack_columns
from adapters.segment import Segment


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """`layout` is the index into `Pack.layouts` that says which adapter each column of `at` belongs to."""

    at: Tensor
    parts: tuple[PlacedPart | None, ...]
    layout: int


class Pack:
    """The concatenation of a set of adapters, by group index.

    Attributes:
        adapters: their order gives the slot numbers that tokens are tagged with.
        layouts: for each distinct layout, the slot of every column, `(total rank,)` int64.
        groups: the packed groups; a group that no adapter touches is absent.
    """

    def __init__(self, adapters: Sequence[PlacedAdapter]) -> None:
        self.adapters = tuple(adapters)
        self.slots = {adapter.digest: slot for slot, adapter in enumerate(adapters)}
        self.layouts: list[Tensor] = []
        self.groups: dict[int, PackedGroup] = {}
        known: dict[tuple[int, ...], int] = {}
        for index in sorted({index for adapter in adapters for index in adapter.groups}):
            self.groups[index] = self._pack(index, known)
        self.parameters = sum(adapter.parameters for adapter in adapters)

    def _pack(self, index: int, known: dict[tuple[int, ...], int]) -> PackedGroup:
        members = [(slot, a.groups[index]) for slot, a in enumerate(self.adapters) if index in a.groups]
        modules = range(len(members[0][1].parts))
        slots = tuple(
            slot
            for module in modules
            for slot, group in members
            if (part := group.parts[module])
            for _ in range(part.stop - part.start)
        )
        if slots not in known:
            known[slots] = len(self.layouts)
            self.layouts.append(torch.tensor(slots, device=members[0][1].at.device))
        if len(members) == 1:  # already in this order: nothing to copy
            return PackedGroup(members[0][1].at, members[0][1].parts, known[slots])
        groups = [group for _, group in members]
        at = stack_columns(
            [g.at[:, p.start : p.stop] for module in modules for g in groups if (p := g.parts[module])]
        )
        return PackedGroup(at, _pack_parts(groups, modules), known[slots])


def _pack_parts(groups: Sequence[PlacedGroup], modules: range) -> tuple[PlacedPart | None, ...]:
    parts: list[PlacedPart | None] = []
    row = 0
    for module in modules:
        bts = [part.bt for group in groups if (part := group.parts[module])]
        if not bts:
            parts.append(None)
            continue
        bt = torch.cat(bts)
        parts.append(PlacedPart(row, row + bt.shape[0], bt))
        row += bt.shape[0]
    return tuple(parts)


class PackCache:
    """The last concatenation: adapters come and go far less often than steps."""

    def __init__(self) -> None:
        self._pack: Pack | None = None

    def get(self, segments: Sequence[Segment[PlacedAdapter]]) -> Pack | None:
        """One for the adapters of `segments`, and for at most as much again; None if there are none."""
        active = {s.adapter.digest: s.adapter for s in segments if s.adapter}
        if not active:
            return None
        needed = sum(adapter.parameters for adapter in active.values())
        pack = self._pack
        if pack is None or not active.keys() <= pack.slots.keys() or pack.parameters > 2 * needed:
            pack = self._pack = Pack(list(active.values()))
        return pack
