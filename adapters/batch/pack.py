"""The adapters of one step, concatenated along the rank.

For a group of modules with the same input, the `A^T` matrices of all active adapters form one
`(in_features, total rank)` matrix: module by module, adapter by adapter. One product shrinks every token by
every adapter; a mask keeps each token's own columns; one product for each module expands. Ranks may differ,
nothing is padded or sorted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.batch.placed import PlacedAdapter, PlacedGroup, stack_columns
from adapters.batch.segment import Segment


@dataclass(frozen=True, slots=True)
class PackedPart:
    """`start`, `stop` and `bt` as in `PlacedPart`, of all adapters.

    `magnitude` and `shift` have one row for each slot, and a last one for the bare base: `(adapters + 1,
    out_features)`, or None where no adapter has any.
    """

    start: int
    stop: int
    bt: Tensor
    magnitude: Tensor | None
    shift: Tensor | None


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """`layout` is the index into `Pack.layouts` that says which adapter each column of `at` belongs to."""

    at: Tensor
    parts: tuple[PackedPart | None, ...]
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
            self.layouts.append(torch.tensor(slots, dtype=torch.int64, device=members[0][1].at.device))
        if len(members) == 1:  # already in this order: nothing to copy
            at = members[0][1].at
        else:
            at = stack_columns(
                [
                    g.at[:, p.start : p.stop]
                    for module in modules
                    for _, g in members
                    if (p := g.parts[module])
                ]
            )
        return PackedGroup(at, self._pack_parts(members, modules), known[slots])

    def _pack_parts(
        self, members: Sequence[tuple[int, PlacedGroup]], modules: range
    ) -> tuple[PackedPart | None, ...]:
        parts: list[PackedPart | None] = []
        row = 0
        for module in modules:
            own = {slot: part for slot, group in members if (part := group.parts[module])}
            if not own:
                parts.append(None)
                continue
            bts = [part.bt for part in own.values()]
            bt = bts[0] if len(bts) == 1 else torch.cat(bts)
            magnitude = self._stack({slot: part.magnitude for slot, part in own.items()}, 1.0)
            # What leaves every number as it is, -0.0 too.
            shift = self._stack({slot: part.shift for slot, part in own.items()}, -0.0)
            parts.append(PackedPart(row, row + bt.shape[0], bt, magnitude, shift))
            row += bt.shape[0]
        return tuple(parts)

    def _stack(self, terms: Mapping[int, Tensor | None], neutral: float) -> Tensor | None:
        """A row for each slot and one for the base: its term where it has one, else `neutral`."""
        present = {slot: term for slot, term in terms.items() if term is not None}
        if not present:
            return None
        like = next(iter(present.values()))
        stacked = like.new_full((len(self.adapters) + 1, len(like)), neutral)
        for slot, term in present.items():
            stacked[slot] = term
        return stacked


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
