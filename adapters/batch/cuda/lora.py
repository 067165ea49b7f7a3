"""Segmented LoRA on a GPU: each row of a step is multiplied by its own adapter, whatever its rank.

    shrunk = shrink(x, group, rows)              S = x A^T     once for the modules that share x
    expand(y, shrunk, group, rows, first, stop)  y += S B^T    for one module, or neighbours side by side

Where an adapter has a magnitude, `y` is multiplied by it first; where it has a shift, that is added too.

`rows` says which row uses which slot of the `AdapterTable`, in one of two forms:

- an int32 tensor `(T,)` of slots, -1 for the bare base: one program for each row, for decoding. A matrix is
  read once for each row, but the rows of one adapter read it from the cache.
- `Tiles`: a program for up to 64 neighbouring rows of one adapter, on tensor cores, for prefill.

Launches depend on T and the table's sizes alone, nothing waits for the device, and all that is read beside x
and y has a fixed address: both forms can be captured in a CUDA graph. A step of bare base rows alone should
call neither function. Rows of -1 are left as they are, bit for bit. The order of all sums depends on the
widths alone, so within one form a row's result depends neither on its neighbours nor on T.

What is expected of an H100 (3.35 TB/s); none of it has been timed on a GPU. With hidden size 4096 and rank 16
in bfloat16, A of q, k and v is 384 KiB and B as much: 0.12 us each for one adapter, 3.8 us for 32, so that
with few adapters the launches cost more than the bytes. Shrinking splits a row's input between 16 programs
of 24 KiB, because one row alone would otherwise stream its matrix through one multiprocessor. The partial
sums that each expanding program reads back are 1 KiB, from the cache. Rank 16 on all linear layers of a 7B
model is 80 MB: 32 distinct adapters add at least 2.5 GB to the 13.5 GB that a decode step of the base reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapters.batch.cuda.kernels import (
    expand_rows_kernel,
    expand_tiles_kernel,
    shrink_rows_kernel,
    shrink_tiles_kernel,
)
from adapters.batch.cuda.table import GroupTable
from adapters.batch.cuda.tiles import Tiles

Rows = Tensor | Tiles


def shrink(x: Tensor, group: GroupTable, rows: Rows) -> Tensor:
    """`x A^T` of each row's own adapter, as partial sums for `expand`.

    Args:
        x: `(T, in_features)`, contiguous along the features.

    Returns:
        float32 `(T, splits, group.width)`. Only the ranks of each row's adapter are written.

    Raises:
        ValueError: a tensor has not the type or shape that the group and `rows` ask for.
    """
    _check(x, group, rows, group.shape.in_features)
    meta = shrink_constants(group.shape.in_features, group.dtype, rows)
    shrunk = torch.empty(x.shape[0], meta["SPLITS"], group.width, dtype=torch.float32, device=x.device)
    kernel, table = _form(rows, shrink_rows_kernel, shrink_tiles_kernel)
    if len(table):
        kernel[(len(table), meta["SPLITS"])](
            x,
            table,
            group.entries,
            shrunk,
            group.shape.in_features,
            x.stride(0),
            group.entries.stride(0),
            group.width,
            **meta,
            A_BY_RANKS=group.a_by_ranks,
            num_warps=4,
        )
    return shrunk


def expand(
    y: Tensor, shrunk: Tensor, group: GroupTable, rows: Rows, first: int = 0, stop: int | None = None
) -> None:
    """`magnitude * y + shrunk B^T + shift` in place, of each row's own adapter.

    Args:
        y: the base's output of modules `first:stop` of the group, side by side: `(T, their widths)`,
            contiguous along the features.
        shrunk: what `shrink` returned for the same group and rows.
        first, stop: by default all modules of the group.

    Raises:
        ValueError: a tensor has not the type or shape that the group and `rows` ask for.
    """
    stop = len(group.shape.out_features) if stop is None else stop
    _check(y, group, rows, group.offsets[stop] - group.offsets[first])
    meta = expand_constants(group.shape.in_features, group.dtype, rows)
    if shrunk.shape != (y.shape[0], meta["SPLITS"], group.width):
        raise ValueError(f"partial sums of shape {tuple(shrunk.shape)} are not this group's for these rows")
    kernel, table = _form(rows, expand_rows_kernel, expand_tiles_kernel)
    columns = group.tile_blocks if isinstance(rows, Tiles) else group.row_blocks
    blocks = columns.table[columns.starts[first] : columns.starts[stop]]
    if len(table):
        kernel[(len(table), len(blocks))](
            y,
            table,
            group.entries,
            blocks,
            shrunk,
            group.offsets[first],
            y.stride(0),
            group.entries.stride(0),
            group.width,
            **meta,
            BLOCK_N=columns.size,
            ALIGNED=group.aligned,
            num_warps=4,
            num_stages=1,  # most ranks are one block: a pipeline would only prefetch what is masked
        )


def shrink_constants(in_features: int, dtype: torch.dtype, rows: Rows) -> dict[str, int]:
    """How shrinking is cut up. It depends on the width and the type alone: they fix the order of the sums.

    By rows: shares of 256 inputs, but at most 32 for a row. By tiles: shares of 1024, but at most 8, since
    every expanding program adds them up again.
    """
    if not isinstance(rows, Tiles):
        return _shares(in_features, 256, 32, 256) | {"BLOCK_R": 32}
    if dtype == torch.float32:  # without tensor cores, and with its operands in registers
        return _shares(in_features, 1024, 8, 32) | {"TILE": rows.rows, "BLOCK_R": 16}
    return _shares(in_features, 1024, 8, 64) | {"TILE": rows.rows, "BLOCK_R": 64}


def expand_constants(in_features: int, dtype: torch.dtype, rows: Rows) -> dict[str, int]:
    """How expanding is cut up, beside the columns: as many partial sums as shrinking makes."""
    splits = shrink_constants(in_features, dtype, rows)["SPLITS"]
    if isinstance(rows, Tiles):
        return {"SPLITS": splits, "TILE": rows.rows, "BLOCK_R": 16}
    return {"SPLITS": splits, "SPLITS_PADDED": 1 << (splits - 1).bit_length(), "BLOCK_R": 16}


def _shares(in_features: int, size: int, most: int, block: int) -> dict[str, int]:
    chunk = block * _ceil_div(in_features, block * min(most, _ceil_div(in_features, size)))
    return {"SPLITS": _ceil_div(in_features, chunk), "CHUNK": chunk, "BLOCK_K": block}


def _form(rows: Rows, by_rows: Any, by_tiles: Any) -> tuple[Any, Tensor]:
    return (by_tiles, rows.table) if isinstance(rows, Tiles) else (by_rows, rows)


def _check(tensor: Tensor, group: GroupTable, rows: Rows, features: int) -> None:
    if tensor.dtype != group.dtype or tensor.dim() != 2 or tensor.shape[1] != features:
        raise ValueError(
            f"{tensor.dtype} {tuple(tensor.shape)}, expected {group.dtype} of {features} features"
        )
    if tensor.stride(1) != 1:
        raise ValueError("features are not contiguous")
    if isinstance(rows, Tensor) and (rows.dtype != torch.int32 or rows.shape != tensor.shape[:1]):
        raise ValueError(f"slots of {rows.dtype} {tuple(rows.shape)} for {tensor.shape[0]} rows")


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)
