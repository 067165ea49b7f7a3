# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
"""Triton kernels of attention over paged KV. Their launchers, with shapes and checks, are in `paged.py`.

    block table     (sequences, max_blocks)   where block j of a sequence lies in the cache
    cache           (blocks, block_size, kv_heads, dim), seen here as rows of `kv_heads * dim`, one a slot
    tile of scores  (ROWS, KEYS): ROWS are queries times the heads that share one kv head, KEYS neighbours

Sums are kept in float32. Scores are kept in units of log2, since exp2 is the hardware's own.
Tiles of keys begin at multiples of KEYS, counted from the sequence's first token: a tile that a query does
not see leaves its sums as they were, bit for bit, so a row's result does not depend on where its chunk began.
Slots that are not read are masked at the load: NaN times a probability of zero would be NaN.
Only what Triton 3.6 and 3.9 both have is used.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def write_kv_kernel(
    key,
    value,
    keys,
    values,
    slots,
    key_row,
    key_head,
    value_row,
    value_head,
    KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    K_DIM: tl.constexpr,
    K_TILE: tl.constexpr,
    V_DIM: tl.constexpr,
    V_TILE: tl.constexpr,
):
    """Program (row, group of HEADS heads): copy a token's keys and values into its slot, unless it is -1."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot >= 0:
        head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
        used = head < KV_HEADS
        k_dim = tl.arange(0, K_TILE)[None, :]
        k = tl.load(key + row * key_row + head * key_head + k_dim, mask=used & (k_dim < K_DIM))
        k_at = keys + (slot * KV_HEADS + head) * K_DIM + k_dim
        tl.store(k_at, k.to(keys.dtype.element_ty), mask=used & (k_dim < K_DIM))
        v_dim = tl.arange(0, V_TILE)[None, :]
        v = tl.load(value + row * value_row + head * value_head + v_dim, mask=used & (v_dim < V_DIM))
        v_at = values + (slot * KV_HEADS + head) * V_DIM + v_dim
        tl.store(v_at, v.to(values.dtype.element_ty), mask=used & (v_dim < V_DIM))


@triton.jit
def _soft_cap(scores, CAP: tl.constexpr):
    """`CAP * tanh(scores / CAP)`, from exp of what is never positive, so that nothing overflows."""
    small = tl.exp(tl.abs(scores) * (-2.0 / CAP))
    size = CAP * (1.0 - small) / (1.0 + small)
    return tl.where(scores < 0, -size, size)


@triton.jit
def _attend(
    q,
    positions,
    peak,
    total,
    keys,
    values,
    table,
    kv_head,
    lowest,
    first,
    last,
    scale,
    KV_HEADS: tl.constexpr,
    K_DIM: tl.constexpr,
    K_TILE: tl.constexpr,
    V_DIM: tl.constexpr,
    V_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
):
    """Softmax over keys `first .. last-1` in one pass (arXiv 2205.14135), none read below `lowest`.

    `q` (ROWS, K_TILE), of queries at `positions` (ROWS,); `peak`, `total` (ROWS,) the maximum and sum so far.
    Returns the unnormalised output (ROWS, V_TILE), and `peak` and `total` after it.
    """
    output = tl.zeros([ROWS, V_TILE], dtype=tl.float32)
    k_dim = tl.arange(0, K_TILE)
    v_dim = tl.arange(0, V_TILE)
    for start in range(first, last, KEYS):
        key = start + tl.arange(0, KEYS)
        held = (key >= lowest) & (key < last)
        block = tl.load(table + key // BLOCK_SIZE, mask=held, other=0).to(tl.int64)
        slot_head = (block * BLOCK_SIZE + key % BLOCK_SIZE) * KV_HEADS + kv_head
        k_at = keys + slot_head[None, :] * K_DIM + k_dim[:, None]
        k = tl.load(k_at, mask=held[None, :] & (k_dim < K_DIM)[:, None], other=0.0).to(q.dtype)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if SOFT_CAP > 0:
            scores = _soft_cap(scores, SOFT_CAP)
        seen = held[None, :] & (key[None, :] <= positions[:, None])
        if WINDOW > 0:
            seen = seen & (key[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(seen, scores * LOG2_E, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        # A row that has seen nothing yet: minus infinity from itself would be NaN.
        origin = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - origin[:, None])
        fade = tl.exp2(peak - origin)
        peak = higher
        total = total * fade + tl.sum(weights, 1)
        v_at = values + slot_head[:, None] * V_DIM + v_dim[None, :]
        v = tl.load(v_at, mask=held[:, None] & (v_dim < V_DIM)[None, :], other=0.0).to(q.dtype)
        output = tl.dot(weights.to(q.dtype), v, output * fade[:, None], input_precision="ieee")
    return output, peak, total


@triton.jit
def _split(length, KEYS: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr, WINDOW: tl.constexpr):
    """Where a sequence's keys begin, where the first split begins, and the keys of a split.

    All from its own length: neither its neighbours nor the size of the batch play a part.
    """
    lowest = length * 0
    if WINDOW > 0:
        lowest = tl.maximum(length - WINDOW, 0)
    base = lowest // KEYS * KEYS
    share = tl.cdiv(tl.cdiv(length - base, SPLITS), KEYS) * KEYS
    return lowest, base, tl.maximum(share, LEAST)


@triton.jit(do_not_specialize=["table_row"])
def decode_kernel(
    query,
    keys,
    values,
    tables,
    lengths,
    partial,
    partial_log,
    query_row,
    query_head,
    table_row,
    scale,
    KV_HEADS: tl.constexpr,
    PACKED: tl.constexpr,
    HEADS: tl.constexpr,
    K_DIM: tl.constexpr,
    K_TILE: tl.constexpr,
    V_DIM: tl.constexpr,
    V_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
):
    """Program (sequence, HEADS of the PACKED heads of one kv head, split): attention over one split.

    Writes `partial` (sequences, heads, SPLITS, V_DIM), normalised, and the log2 of its sum of exponentials to
    `partial_log` (sequences, heads, SPLITS). Splits beyond the sequence write nothing.
    """
    sequence = tl.program_id(0).to(tl.int64)
    groups = (PACKED + HEADS - 1) // HEADS
    kv_head = tl.program_id(1) // groups
    packed = tl.program_id(1) % groups * HEADS + tl.arange(0, HEADS)
    split = tl.program_id(2)
    length = tl.load(lengths + sequence)
    lowest, base, share = _split(length, KEYS, SPLITS, LEAST, WINDOW)
    first = base + split * share
    if first < length:
        head = kv_head * PACKED + packed
        k_dim = tl.arange(0, K_TILE)
        used = packed < PACKED
        q_at = query + sequence * query_row + head[:, None] * query_head + k_dim[None, :]
        q = tl.load(q_at, mask=used[:, None] & (k_dim < K_DIM)[None, :], other=0.0)
        output, peak, total = _attend(
            q,
            tl.zeros([HEADS], dtype=tl.int32) + (length - 1),
            tl.full([HEADS], float("-inf"), dtype=tl.float32),
            tl.zeros([HEADS], dtype=tl.float32),
            keys,
            values,
            tables + sequence * table_row,
            kv_head,
            lowest,
            first,
            tl.minimum(first + share, length),
            scale,
            KV_HEADS,
            K_DIM,
            K_TILE,
            V_DIM,
            V_TILE,
            BLOCK_SIZE,
            HEADS,
            KEYS,
            WINDOW,
            SOFT_CAP,
        )
        v_dim = tl.arange(0, V_TILE)
        at = (sequence * (KV_HEADS * PACKED) + head) * SPLITS + split
        tl.store(
            partial + at[:, None] * V_DIM + v_dim[None, :],
            output / total[:, None],
            mask=used[:, None] & (v_dim < V_DIM)[None, :],
        )
        tl.store(partial_log + at, peak + tl.log2(total), mask=used)


@triton.jit
def combine_kernel(
    partial,
    partial_log,
    lengths,
    sinks,
    out,
    HEADS: tl.constexpr,
    V_DIM: tl.constexpr,
    V_TILE: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Program (sequence, head): the splits' outputs, weighted by their sums; zeros for a length of 0."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(lengths + sequence)
    _, base, share = _split(length, KEYS, SPLITS, LEAST, WINDOW)
    split = tl.arange(0, SPLITS)
    used = base + split * share < length
    at = (sequence * HEADS + head) * SPLITS + split
    logs = tl.load(partial_log + at, mask=used, other=float("-inf"))
    peak = tl.max(logs, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        peak = tl.maximum(peak, sink)
    origin = tl.where(peak == float("-inf"), 0.0, peak)
    weights = tl.exp2(logs - origin)
    total = tl.sum(weights, 0)
    if HAS_SINKS:
        total += tl.exp2(sink - origin)
    total = tl.where(total == 0, 1.0, total)
    v_dim = tl.arange(0, V_TILE)
    mask = v_dim < V_DIM
    parts = tl.load(
        partial + at[:, None] * V_DIM + v_dim[None, :], mask=used[:, None] & mask[None, :], other=0.0
    )
    row = tl.sum(parts * weights[:, None], 0) / total
    tl.store(out + (sequence * HEADS + head) * V_DIM + v_dim, row.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["table_row"])
def prefill_kernel(
    query,
    keys,
    values,
    tables,
    lengths,
    query_starts,
    tiles,
    sinks,
    out,
    query_row,
    query_head,
    table_row,
    scale,
    KV_HEADS: tl.constexpr,
    PACKED: tl.constexpr,
    HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    K_DIM: tl.constexpr,
    K_TILE: tl.constexpr,
    V_DIM: tl.constexpr,
    V_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Program (tile, HEADS of the PACKED heads of one kv head): QUERIES neighbours of one sequence.

    `tiles` (tiles, 2): sequence and first query within its chunk; a sequence of -1 is padding.
    Row r of the tile is query `r // HEADS` for head `r % HEADS`.
    """
    sequence = tl.load(tiles + tl.program_id(0) * 2).to(tl.int64)
    if sequence >= 0:
        first_query = tl.load(tiles + tl.program_id(0) * 2 + 1)
        begin = tl.load(query_starts + sequence)
        queries = tl.load(query_starts + sequence + 1) - begin
        length = tl.load(lengths + sequence)
        groups = (PACKED + HEADS - 1) // HEADS
        kv_head = tl.program_id(1) // groups
        row = tl.arange(0, ROWS)
        asked = first_query + row // HEADS
        packed = tl.program_id(1) % groups * HEADS + row % HEADS
        used = (row < QUERIES * HEADS) & (asked < queries) & (packed < PACKED)
        head = kv_head * PACKED + packed
        token = (begin + asked).to(tl.int64)
        k_dim = tl.arange(0, K_TILE)
        q_at = query + token[:, None] * query_row + head[:, None] * query_head + k_dim[None, :]
        q = tl.load(q_at, mask=used[:, None] & (k_dim < K_DIM)[None, :], other=0.0)
        peak = tl.full([ROWS], float("-inf"), dtype=tl.float32)
        total = tl.zeros([ROWS], dtype=tl.float32)
        if HAS_SINKS:
            peak = tl.load(sinks + head, mask=used, other=0.0).to(tl.float32) * LOG2_E
            total += 1.0
        before = length - queries
        lowest = before * 0
        if WINDOW > 0:
            lowest = tl.maximum(before + first_query - WINDOW + 1, 0)
        output, peak, total = _attend(
            q,
            before + asked,
            peak,
            total,
            keys,
            values,
            tables + sequence * table_row,
            kv_head,
            lowest,
            lowest // KEYS * KEYS,
            tl.minimum(before + first_query + QUERIES, length),
            scale,
            KV_HEADS,
            K_DIM,
            K_TILE,
            V_DIM,
            V_TILE,
            BLOCK_SIZE,
            ROWS,
            KEYS,
            WINDOW,
            SOFT_CAP,
        )
        # Unused rows may have seen nothing.
        total = tl.where(total == 0, 1.0, total)
        v_dim = tl.arange(0, V_TILE)
        tl.store(
            out + (token[:, None] * (KV_HEADS * PACKED) + head[:, None]) * V_DIM + v_dim[None, :],
            (output / total[:, None]).to(out.dtype.element_ty),
            mask=used[:, None] & (v_dim < V_DIM)[None, :],
        )
