# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Triton kernels of segmented LoRA. Their launchers, with shapes and checks, are in `lora.py`.

    x (rows, in) ── shrink: A of the row's adapter ── shrunk (rows, splits, width) ── expand: B ── into y

Two forms. By rows: a program multiplies one row, elementwise, and looks the row's slot up. By tiles: a
program multiplies up to TILE neighbouring rows of one adapter by tensor cores.

    entries   int64; an adapter has one run of ENTRY words for its group, then one for each module of it:
              (address of A, ranks)   and   (address of B, first rank, rank, address of magnitude, of shift)
    shrunk    float32 partial sums over `splits` shares of the input, which expand adds up in their order:
              no atomics, so that a result is the same each time
    tiles     int32 (first row, row behind the last, slot), slot -1 in a tile that is not used
    blocks    int32 (module, first column, the module's width, the first column's place in y), one for each
              program of a row or tile

Every sum is float32, and its order depends on the widths alone: not on the rows beside it, nor on their
number. What a mask leaves out is never read, so another adapter's infinities can't come in as `0 * inf`.
Only what Triton 3.6 and 3.9 both have is used.
"""

import triton
import triton.language as tl

ENTRY = tl.constexpr(8)  # words; five are used, and 64 bytes are two sectors of the memory's
TILE_FIELDS = tl.constexpr(3)
BLOCK_FIELDS = tl.constexpr(4)


@triton.jit
def _module(entries, entries_stride, slot, member):
    """The words of one module of the adapter in `slot`."""
    entry = entries + slot.to(tl.int64) * entries_stride + (1 + member) * ENTRY
    rank = tl.load(entry + 2).to(tl.int32)
    return tl.load(entry), tl.load(entry + 1).to(tl.int32), rank, tl.load(entry + 3), tl.load(entry + 4)


@triton.jit
def _columns(block, BLOCK_N: tl.constexpr, ALIGNED: tl.constexpr):
    """A program's first column, the width of its module, and where that column lies in y."""
    column = tl.multiple_of(tl.load(block + 1), BLOCK_N)
    out_features = tl.load(block + 2)
    place = tl.load(block + 3)
    if ALIGNED:
        out_features = tl.multiple_of(out_features, 16)
        place = tl.multiple_of(place, 16)
    return column, out_features, place


@triton.jit
def _result(y, delta, magnitude, shift, n, inside):
    """`magnitude * y + delta + shift` for columns `n`; a null address leaves its step out."""
    if magnitude != 0:
        y *= tl.load(magnitude.to(tl.pointer_type(tl.float32)) + n, mask=inside, other=0.0)
    y += delta
    if shift != 0:
        y += tl.load(shift.to(tl.pointer_type(tl.float32)) + n, mask=inside, other=0.0)
    return y


@triton.jit
def shrink_rows_kernel(
    x,
    slots,
    entries,
    shrunk,
    in_features,
    x_stride,
    entries_stride,
    width,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    A_BY_RANKS: tl.constexpr,
):
    """Program (row, split): the row's share of `x A^T` from CHUNK inputs."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    slot = tl.load(slots + row)
    if slot < 0:
        return
    entry = entries + slot.to(tl.int64) * entries_stride
    a = tl.multiple_of(tl.load(entry).to(tl.pointer_type(x.dtype.element_ty)), 16)
    ranks = tl.load(entry + 1).to(tl.int32)
    for first in range(0, ranks, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        products = tl.full((BLOCK_R, BLOCK_K), 0.0, tl.float32)
        for start in range(0, CHUNK, BLOCK_K):
            k = split * CHUNK + start + tl.arange(0, BLOCK_K)
            inside = k < in_features
            values = tl.load(x + row * x_stride + k, mask=inside, other=0.0).to(tl.float32)
            if A_BY_RANKS:
                places = r[:, None].to(tl.int64) * in_features + k[None, :]
            else:
                places = k[None, :].to(tl.int64) * ranks + r[:, None]
            mask = (r[:, None] < ranks) & inside[None, :]
            products += tl.load(a + places, mask=mask, other=0.0).to(tl.float32) * values[None, :]
        sums = tl.sum(products, axis=1)
        tl.store(shrunk + (row * SPLITS + split) * width + r, sums, mask=r < ranks)


@triton.jit
def expand_rows_kernel(
    y,
    slots,
    entries,
    blocks,
    shrunk,
    y_first,
    y_stride,
    entries_stride,
    width,
    SPLITS: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Program (row, block): `magnitude * y + shrunk B^T + shift` in BLOCK_N columns of the row."""
    row = tl.program_id(0).to(tl.int64)
    block = blocks + tl.program_id(1) * BLOCK_FIELDS
    slot = tl.load(slots + row)
    if slot < 0:
        return
    b_address, first_rank, rank, magnitude, shift = _module(entries, entries_stride, slot, tl.load(block))
    if (rank == 0) & (magnitude == 0) & (shift == 0):
        return
    column, out_features, place = _columns(block, BLOCK_N, ALIGNED)
    b = tl.multiple_of(b_address.to(tl.pointer_type(y.dtype.element_ty)), 16)
    n = column + tl.arange(0, BLOCK_N)
    inside = n < out_features
    split = tl.arange(0, SPLITS_PADDED)
    delta = tl.full((BLOCK_N,), 0.0, tl.float32)
    for first in range(0, rank, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        own = r < rank
        partial = tl.load(
            shrunk + (row * SPLITS + split[:, None]) * width + first_rank + r[None, :],
            mask=(split[:, None] < SPLITS) & own[None, :],
            other=0.0,
        )
        sums = tl.sum(partial, axis=0)
        weights = tl.load(
            b + r[:, None].to(tl.int64) * out_features + n[None, :],
            mask=own[:, None] & inside[None, :],
            other=0.0,
        )
        delta += tl.sum(sums[:, None] * weights.to(tl.float32), axis=0)
    target = y + row * y_stride + (place - y_first) + tl.arange(0, BLOCK_N)
    own = tl.load(target, mask=inside, other=0.0).to(tl.float32)
    result = _result(own, delta, magnitude, shift, n, inside)
    tl.store(target, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def shrink_tiles_kernel(
    x,
    tiles,
    entries,
    shrunk,
    in_features,
    x_stride,
    entries_stride,
    width,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    A_BY_RANKS: tl.constexpr,
):
    """Program (tile, split): the rows' share of `x A^T` from CHUNK inputs."""
    tile = tiles + tl.program_id(0) * TILE_FIELDS
    split = tl.program_id(1)
    slot = tl.load(tile + 2)
    if slot < 0:
        return
    rows = tl.load(tile).to(tl.int64) + tl.arange(0, TILE)
    present = rows < tl.load(tile + 1)
    entry = entries + slot.to(tl.int64) * entries_stride
    a = tl.multiple_of(tl.load(entry).to(tl.pointer_type(x.dtype.element_ty)), 16)
    ranks = tl.load(entry + 1).to(tl.int32)
    for first in range(0, ranks, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        own = r < ranks
        sums = tl.full((TILE, BLOCK_R), 0.0, tl.float32)
        for start in range(0, CHUNK, BLOCK_K):
            k = split * CHUNK + start + tl.arange(0, BLOCK_K)
            inside = k < in_features
            values = tl.load(
                x + rows[:, None] * x_stride + k[None, :],
                mask=present[:, None] & inside[None, :],
                other=0.0,
            )
            if A_BY_RANKS:
                places = r[None, :].to(tl.int64) * in_features + k[:, None]
            else:
                places = k[:, None].to(tl.int64) * ranks + r[None, :]
            weights = tl.load(a + places, mask=inside[:, None] & own[None, :], other=0.0)
            sums = tl.dot(values, weights, sums, input_precision="ieee")
        target = shrunk + (rows[:, None] * SPLITS + split) * width + r[None, :]
        tl.store(target, sums, mask=present[:, None] & own[None, :])


@triton.jit
def expand_tiles_kernel(
    y,
    tiles,
    entries,
    blocks,
    shrunk,
    y_first,
    y_stride,
    entries_stride,
    width,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Program (tile, block): `magnitude * y + shrunk B^T + shift` in BLOCK_N columns of the rows."""
    tile = tiles + tl.program_id(0) * TILE_FIELDS
    block = blocks + tl.program_id(1) * BLOCK_FIELDS
    slot = tl.load(tile + 2)
    if slot < 0:
        return
    rows = tl.load(tile).to(tl.int64) + tl.arange(0, TILE)
    present = rows < tl.load(tile + 1)
    b_address, first_rank, rank, magnitude, shift = _module(entries, entries_stride, slot, tl.load(block))
    if (rank == 0) & (magnitude == 0) & (shift == 0):
        return
    column, out_features, place = _columns(block, BLOCK_N, ALIGNED)
    b = tl.multiple_of(b_address.to(tl.pointer_type(y.dtype.element_ty)), 16)
    n = column + tl.arange(0, BLOCK_N)
    inside = n < out_features
    delta = tl.full((TILE, BLOCK_N), 0.0, tl.float32)
    for first in range(0, rank, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        own = r < rank
        source = shrunk + rows[:, None] * SPLITS * width + first_rank + r[None, :]
        sums = tl.full((TILE, BLOCK_R), 0.0, tl.float32)
        for split in tl.static_range(SPLITS):
            sums += tl.load(source + split * width, mask=present[:, None] & own[None, :], other=0.0)
        weights = tl.load(
            b + r[:, None].to(tl.int64) * out_features + n[None, :],
            mask=own[:, None] & inside[None, :],
            other=0.0,
        )
        if weights.dtype == tl.float32:
            delta = tl.dot(sums, weights, delta, input_precision="ieee")
        else:
            # Two numbers of the narrow type carry nearly all of a float32: its rounding, and what that lost.
            # An infinity has lost nothing: `inf - inf` would be NaN.
            high = sums.to(weights.dtype)
            lost = sums - high.to(tl.float32)
            low = tl.where(tl.abs(high.to(tl.float32)) == float("inf"), 0.0, lost).to(weights.dtype)
            delta = tl.dot(high, weights, delta)
            delta = tl.dot(low, weights, delta)
    target = y + rows[:, None] * y_stride + (place - y_first) + tl.arange(0, BLOCK_N)[None, :]
    mask = present[:, None] & inside[None, :]
    own = tl.load(target, mask=mask, other=0.0).to(tl.float32)
    result = _result(own, delta, magnitude, shift, n, inside)
    tl.store(target, result.to(y.dtype.element_ty), mask=mask)
