"""Attention over paged KV on a CUDA device: what a step's kernels need to know, and their launchers.

Nothing here waits for the device or reads from it, and grids depend on shapes alone: lengths are read by the
kernels. So a step of one query for each sequence can be captured in a CUDA graph and replayed with other
lengths, block tables and slots in the same tensors.

A sequence's result does not depend on its neighbours: tile sizes follow from dtype and head widths, the
number of splits is fixed, and where they lie follows from the sequence's own length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.cuda.kernels import combine_kernel, decode_kernel, prefill_kernel, write_kv_kernel

SPLITS = 16  # parts of a sequence that decode in parallel
_LEAST_SPLIT = 128  # keys that are worth a program; a multiple of every tile's keys


@dataclass(frozen=True, slots=True, eq=False)
class PagedStep:
    """One step over a flat row of tokens, its tensors on the device.

    The first `decodes` sequences have one query each, in rows `0 .. decodes-1`; those of length 0 are
    padding. The others have their chunks in the rows that `query_starts` tells.

    Attributes:
        slots: `(tokens,)` int64, `block * block_size + offset` of every row; -1 is padding, not written.
        block_tables: `(sequences, max_blocks)` int32; entries beyond a sequence's length are not read.
        kv_lengths: `(sequences,)` int32, cached tokens with those of this step.
        query_starts: `(sequences + 1,)` int32, the first row of each sequence.
        tiles: `(tiles, 2)` int32, from `prefill_tiles`.
        tile_queries: what `tiles` was made with.
    """

    slots: Tensor
    block_tables: Tensor
    kv_lengths: Tensor
    query_starts: Tensor
    tiles: Tensor
    tile_queries: int
    decodes: int


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOptions:
    """What a layer asks for.

    Attributes:
        scale: factor of the scores.
        window: a token sees this many tokens, itself included; None is all.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2, arXiv 2408.00118).
        sinks: `(heads,)` logits that take part in the softmax only (gpt-oss).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TileSizes:
    """What one program takes at a time. `rows`: queries of a prefill tile times heads that share keys."""

    rows: int
    keys: int
    warps: int
    stages: int


def power_of_two(number: int, least: int = 1) -> int:
    """The smallest power of two that is at least `number` and `least`."""
    return max(least, 1 << (number - 1).bit_length())


def tile_sizes(dim: int, dtype: torch.dtype) -> TileSizes:
    """Tiles for heads of width `dim`, within the shared memory of any sm_80 and later: 99 KB a block.

    Products in exact float32 do not run on tensor cores and keep their operands in registers.
    """
    if dtype == torch.float32:
        if dim <= 256:
            return TileSizes(rows=32 if dim <= 128 else 16, keys=32, warps=8, stages=2)
        return TileSizes(rows=16, keys=16, warps=4, stages=1)
    row_bytes = power_of_two(dim, 16) * dtype.itemsize
    if row_bytes <= 128:
        return TileSizes(rows=128, keys=64, warps=4, stages=3)
    if row_bytes <= 256:
        return TileSizes(rows=128, keys=64, warps=8, stages=2)
    if row_bytes <= 512:
        return TileSizes(rows=64, keys=32, warps=4, stages=2)
    return TileSizes(rows=16, keys=16, warps=4, stages=1)


def tile_queries(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> int:
    """Queries of one prefill tile. `dim`: the wider of a head's key and value.

    Layers of other shapes can use the same tiles; this is what fills those of the given shape.
    """
    return max(1, tile_sizes(dim, dtype).rows // (heads // kv_heads))


def prefill_tiles(chunks: Sequence[int], decodes: int, queries: int, pad_to: int = 0) -> Tensor:
    """`(tiles, 2)` int32 on the host: sequence and first query of each tile, those with most keys first.

    Args:
        chunks: number of queries of each sequence after the `decodes` that have one each.
        queries: of one tile.
        pad_to: least number of tiles, the rest empty, for a grid of the same size in every step.
    """
    tiles = [
        (decodes + index, first)
        for index, chunk in enumerate(chunks)
        for first in reversed(range(0, chunk, queries))
    ]
    tiles += [(-1, 0)] * (pad_to - len(tiles))
    return torch.tensor(tiles, dtype=torch.int32).view(-1, 2)


def write_kv(step: PagedStep, key: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> None:
    """Store the step's `key` and `value`, `(tokens, kv_heads, dim)`, in the layer's cache.

    Args:
        keys, values: `(blocks, block_size, kv_heads, dim)`, contiguous; dims of keys and values may differ.
    """
    _contiguous(keys, values, step.slots)
    key, value = _rows(key), _rows(value)
    tokens, kv_heads, k_dim = key.shape
    v_dim = value.shape[-1]
    k_tile, v_tile = power_of_two(k_dim), power_of_two(v_dim)
    heads = min(power_of_two(kv_heads), max(1, 2048 // max(k_tile, v_tile)))
    if tokens:
        write_kv_kernel[tokens, -(-kv_heads // heads)](
            key,
            value,
            keys,
            values,
            step.slots,
            key.stride(0),
            key.stride(1),
            value.stride(0),
            value.stride(1),
            KV_HEADS=kv_heads,
            HEADS=heads,
            K_DIM=k_dim,
            K_TILE=k_tile,
            V_DIM=v_dim,
            V_TILE=v_tile,
        )


def paged_attention(
    step: PagedStep, query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions
) -> Tensor:
    """Attention of every row of the step over its sequence's cache, which holds the step's own keys already.

    Args:
        query: `(tokens, heads, k_dim)`. keys, values: as in `write_kv`.

    Returns:
        `(tokens, heads, v_dim)`. Rows of padding sequences are zeros, rows of no sequence are not set.
    """
    out = query.new_empty(query.shape[0], query.shape[1], values.shape[-1])
    if step.decodes:
        paged_decode(step, query, keys, values, out, options)
    if step.tiles.shape[0]:
        paged_prefill(step, query, keys, values, out, options)
    return out


def paged_decode(
    step: PagedStep, query: Tensor, keys: Tensor, values: Tensor, out: Tensor, options: AttentionOptions
) -> None:
    """Attention of rows `0 .. decodes-1`, each sequence's keys split in parts that run in parallel.

    `out`: `(tokens, heads, v_dim)`, contiguous; only these rows are written.
    """
    shape = _shape(query, keys, values, out)
    query = _rows(query)
    heads, packed = query.shape[1], shape["PACKED"]
    tile = tile_sizes(max(shape["K_DIM"], shape["V_DIM"]), query.dtype)
    together = min(power_of_two(packed, 16), max(16, tile.rows // 2))
    splits = {"KEYS": tile.keys, "SPLITS": SPLITS, "LEAST": _LEAST_SPLIT, "WINDOW": options.window or 0}
    partial = query.new_empty(step.decodes, heads, SPLITS, shape["V_DIM"], dtype=torch.float32)
    partial_log = query.new_empty(step.decodes, heads, SPLITS, dtype=torch.float32)
    decode_kernel[step.decodes, shape["KV_HEADS"] * -(-packed // together), SPLITS](
        query,
        keys,
        values,
        step.block_tables,
        step.kv_lengths,
        partial,
        partial_log,
        query.stride(0),
        query.stride(1),
        step.block_tables.stride(0),
        options.scale,
        **shape,
        **splits,
        HEADS=together,
        SOFT_CAP=options.softcap or 0.0,
        num_warps=4,
        num_stages=tile.stages,
    )
    combine_kernel[step.decodes, heads](
        partial,
        partial_log,
        step.kv_lengths,
        partial_log if options.sinks is None else options.sinks,
        out,
        **splits,
        HEADS=heads,
        V_DIM=shape["V_DIM"],
        V_TILE=shape["V_TILE"],
        HAS_SINKS=options.sinks is not None,
    )


def paged_prefill(
    step: PagedStep, query: Tensor, keys: Tensor, values: Tensor, out: Tensor, options: AttentionOptions
) -> None:
    """Attention of the chunks in `step.tiles`; only their rows of `out` are written."""
    shape = _shape(query, keys, values, out)
    query = _rows(query)
    packed, queries = shape["PACKED"], step.tile_queries
    tile = tile_sizes(max(shape["K_DIM"], shape["V_DIM"]), query.dtype)
    together = min(packed, max(1, tile.rows // queries))
    prefill_kernel[step.tiles.shape[0], shape["KV_HEADS"] * -(-packed // together)](
        query,
        keys,
        values,
        step.block_tables,
        step.kv_lengths,
        step.query_starts,
        step.tiles,
        query if options.sinks is None else options.sinks,
        out,
        query.stride(0),
        query.stride(1),
        step.block_tables.stride(0),
        options.scale,
        **shape,
        HEADS=together,
        QUERIES=queries,
        ROWS=power_of_two(queries * together, 16),
        KEYS=tile.keys,
        WINDOW=options.window or 0,
        SOFT_CAP=options.softcap or 0.0,
        HAS_SINKS=options.sinks is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _shape(query: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> dict[str, int]:
    """The constants that both kernels share."""
    _contiguous(keys, values, out)
    kv_heads, k_dim, v_dim = keys.shape[2], keys.shape[3], values.shape[3]
    if query.shape[1] % kv_heads or query.shape[2] != k_dim or out.shape[1:] != (query.shape[1], v_dim):
        raise ValueError(f"query {tuple(query.shape)} and output {tuple(out.shape)} do not fit the cache")
    return {
        "KV_HEADS": kv_heads,
        "PACKED": query.shape[1] // kv_heads,
        "K_DIM": k_dim,
        "K_TILE": power_of_two(k_dim, 16),
        "V_DIM": v_dim,
        "V_TILE": power_of_two(v_dim, 16),
        "BLOCK_SIZE": keys.shape[1],
    }


def _contiguous(*tensors: Tensor) -> None:
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("caches, slots and outputs of paged attention are contiguous")


def _rows(tensor: Tensor) -> Tensor:
    """`(tokens, heads, dim)` whose last dimension lies together; its other strides may be any."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
