"""Which adapters lie in which slot of a GPU, as the addresses that the kernels read.

Nothing is copied or padded: an adapter's matrices stay where they were placed, a slot holds their addresses.
It does not keep them alive: where adapters live is for `residency.py` to say, and an adapter that is gone
leaves its slot free.

    entries[slot]:  group 0: (A, ranks) | module 0: (B, first rank, rank, magnitude, shift) | module 1 | ...

The tensors keep their own addresses for good, so a captured CUDA graph finds whatever is in the slots when it
is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from adapters.batch.placed import PlacedAdapter, PlacedGroup

ENTRY = 8  # words of one entry: as in kernels.py
ROW_COLUMNS = 256
TILE_COLUMNS = 128


@dataclass(frozen=True, slots=True)
class GroupShape:
    """The widths of modules that share an input."""

    in_features: int
    out_features: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ColumnBlocks:
    """The programs that cover the outputs of a group, `table` as in kernels.py.

    Those of modules `first:stop` are `table[starts[first]:starts[stop]]`.
    """

    table: Tensor
    starts: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class GroupTable:
    """One group's share of the table, as the launchers need it.

    Attributes:
        entries: int64 `(slots, 1 + modules, ENTRY)`, a view of the whole table.
        width: most ranks that one adapter may have in the group, over all of its modules.
        offsets: where each module's columns begin when those of the group lie side by side; last, their end.
        aligned: whether every width is a multiple of 16.
        a_by_ranks: whether A lies rank by rank, `(ranks, in)` in memory, or input by input.
    """

    shape: GroupShape
    entries: Tensor
    width: int
    offsets: tuple[int, ...]
    row_blocks: ColumnBlocks
    tile_blocks: ColumnBlocks
    aligned: bool
    a_by_ranks: bool
    dtype: torch.dtype


class AdapterTable:
    """A fixed number of slots for the adapters on one GPU.

    All methods belong to the thread and the stream that launch the kernels: there a change to a slot is
    ordered with them, and costs no synchronization.

    Args:
        groups: the model's groups, in the order of `PlacedAdapter.groups`.
        slots: how many adapters can be assigned at a time.
        max_rank: the largest rank of one module.
        dtype: of the adapters' matrices, the inputs and the outputs: bfloat16, float16 or float32.
    """

    def __init__(
        self,
        groups: Sequence[GroupShape],
        slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dtype = dtype
        lengths = [1 + len(group.out_features) for group in groups]
        self._starts = list(accumulate(lengths, initial=0))
        self._entries = torch.zeros(slots, self._starts[-1], ENTRY, dtype=torch.int64, device=device)
        self.device = self._entries.device  # with its number, as tensors tell it
        self.groups = [
            _group_table(shape, self._entries[:, start : start + length], max_rank, dtype)
            for shape, start, length in zip(groups, self._starts, lengths, strict=False)
        ]
        self._count = slots
        self._slots: WeakKeyDictionary[PlacedAdapter, int] = WeakKeyDictionary()

    def slot(self, adapter: PlacedAdapter) -> int | None:
        """Where `adapter`, this very placement of it, has been assigned."""
        return self._slots.get(adapter)

    @property
    def assigned(self) -> list[PlacedAdapter]:
        """The adapters that are in slots, in the order in which they were assigned."""
        return list(self._slots)

    @property
    def full(self) -> bool:
        """Whether `assign` would find no slot."""
        return len(self._slots) == self._count

    def assign(self, adapter: PlacedAdapter) -> int:
        """Put `adapter` into a free slot. The slot, -1 never.

        Whoever launches kernels with it holds the adapter until then; its memory is free for what is launched
        later on the same stream.

        Raises:
            ValueError: it is assigned already, no slot is free, or a tensor has not the shape, type, device
                or layout that the kernels read; nothing has changed then.
        """
        if adapter in self._slots:
            raise ValueError(f"adapter {adapter.digest[:12]} has slot {self._slots[adapter]} already")
        if self.full:
            raise ValueError(f"all {self._count} adapter slots are taken")
        words = self._words(adapter)
        taken = {*self._slots.values()}
        slot = next(slot for slot in range(self._count) if slot not in taken)
        # Pinned memory that PyTorch does not hand out again before the copy has been made.
        host = torch.tensor(words, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        self._entries[slot].copy_(host.view(-1, ENTRY), non_blocking=True)
        self._slots[adapter] = slot
        return slot

    def free(self, adapter: PlacedAdapter) -> None:
        """Empty an adapter's slot; rows that still name it would be left as they are.

        Raises:
            ValueError: it has none.
        """
        slot = self._slots.get(adapter)
        if slot is None:
            raise ValueError(f"adapter {adapter.digest[:12]} has no slot")
        del self._slots[adapter]
        self._entries[slot].zero_()

    def _words(self, adapter: PlacedAdapter) -> list[int]:
        words: list[int] = []
        for index, table in enumerate(self.groups):
            group = adapter.groups.get(index)
            if group is not None:
                self._check(group, table)
            words += _entry(group.at.data_ptr(), group.at.shape[1]) if group else _entry()
            for member, out_features in enumerate(table.shape.out_features):
                part = group.parts[member] if group else None
                if part is None:
                    words += _entry()
                    continue
                terms = [self._term(part.magnitude, out_features), self._term(part.shift, out_features)]
                words += _entry(part.bt.data_ptr(), part.start, part.stop - part.start, *terms)
        return words

    def _check(self, group: PlacedGroup, table: GroupTable) -> None:
        shape, at = table.shape, group.at
        laid_out = at.t().is_contiguous() if table.a_by_ranks else at.is_contiguous()
        if at.shape[0] != shape.in_features or at.shape[1] > table.width or not laid_out:
            raise ValueError(
                f"A^T {tuple(at.shape)} with strides {at.stride()} does not suit {shape} in {self.dtype}, "
                f"of at most {table.width} ranks"
            )
        if len(group.parts) != len(shape.out_features):
            raise ValueError(f"{len(group.parts)} modules do not suit {shape}")
        tensors = [at]
        for part, out_features in zip(group.parts, shape.out_features, strict=True):
            if part is None:
                continue
            tensors.append(part.bt)
            fits = 0 <= part.start <= part.stop <= at.shape[1]
            if (
                not fits
                or part.bt.shape != (part.stop - part.start, out_features)
                or not part.bt.is_contiguous()
            ):
                raise ValueError(f"B^T {tuple(part.bt.shape)} does not suit {shape} or its ranks")
        for tensor in tensors:
            self._check_memory(tensor, self.dtype, 16)

    def _term(self, term: Tensor | None, out_features: int) -> int:
        if term is None:
            return 0
        if term.shape != (out_features,) or not term.is_contiguous():
            raise ValueError(f"a magnitude or shift of shape {tuple(term.shape)} for {out_features} outputs")
        self._check_memory(term, torch.float32, 4)
        return term.data_ptr()

    def _check_memory(self, tensor: Tensor, dtype: torch.dtype, alignment: int) -> None:
        if tensor.dtype != dtype or tensor.device != self.device or tensor.data_ptr() % alignment:
            raise ValueError(
                f"a tensor of {tensor.dtype} on {tensor.device} at {tensor.data_ptr():#x}, expected {dtype} "
                f"on {self.device} at a multiple of {alignment} bytes"
            )


def _entry(*words: int) -> list[int]:
    return [*words, *[0] * (ENTRY - len(words))]


def _group_table(shape: GroupShape, entries: Tensor, max_rank: int, dtype: torch.dtype) -> GroupTable:
    widths = shape.out_features
    offsets = tuple(accumulate(widths, initial=0))
    return GroupTable(
        shape=shape,
        entries=entries,
        width=max_rank * len(widths),
        offsets=offsets,
        row_blocks=_column_blocks(widths, offsets, ROW_COLUMNS, entries.device),
        tile_blocks=_column_blocks(widths, offsets, TILE_COLUMNS, entries.device),
        aligned=all(width % 16 == 0 for width in widths),
        a_by_ranks=dtype != torch.float32,  # as `placed.stack_columns` lays it
        dtype=dtype,
    )


def _column_blocks(
    widths: Sequence[int], offsets: Sequence[int], size: int, device: torch.device
) -> ColumnBlocks:
    blocks = [
        [(member, column, width, offset + column) for column in range(0, width, size)]
        for member, (width, offset) in enumerate(zip(widths, offsets, strict=False))
    ]
    rows = [block for member in blocks for block in member]
    starts = tuple(accumulate(map(len, blocks), initial=0))
    return ColumnBlocks(torch.tensor(rows, dtype=torch.int32, device=device), starts, size)
