"""The two kernels of block-sparse attention: forward, and backward with the scores computed anew.

Notation as in `regard.ops.triton.block_sparse`, which launches them. A program has some rows of one block of queries of
one head, and walks along the list of keys that they may see: the sinks, the chosen blocks, and the window of all its
rows, in this order. Batch, head and token are addressed by stride, and a token's own numbers lie side by side.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit  # type: ignore[untyped-decorator]
def _rows(first, tile, block, block_q, queries, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a program's rows: places among the queries and among the keys, which are real, the least and largest place."""
    inside = tile * ROWS + tl.arange(0, ROWS)
    query = block * block_q + inside
    end = tl.minimum(block * block_q + tl.minimum(tile * ROWS + ROWS, block_q), queries)
    real = (inside < block_q) & (query < queries)
    return query, first + query, real, first + block * block_q + tile * ROWS, first + end - 1


@triton.jit  # type: ignore[untyped-decorator]
def _list(low, high, count, keys, window, sinks, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The list of keys: the last that may be read, how many sinks and chosen keys, where the window starts, its end."""
    last = tl.minimum(high, keys - 1)
    far_sinks = tl.maximum(tl.minimum(sinks, high - window + 1), 0)
    chosen = count * BLOCK_K
    near_from = tl.maximum(low - window + 1, 0)
    total = far_sinks + chosen + tl.maximum(last - near_from + 1, 0)
    # a tile without a real row has nothing to read
    return last, far_sinks, chosen, near_from, tl.where(high >= low, total, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _columns(  # type: ignore[no-untyped-def]
    number, starts, last, far_sinks, chosen, near_from, total, sinks, BLOCK_K: tl.constexpr
):
    """Of places in the list: the keys that stand there, whether in the window's part, and whether they may be read."""
    after_sinks = number - far_sinks
    is_chosen = (after_sinks >= 0) & (after_sinks < chosen)
    start = tl.load(starts + after_sinks // BLOCK_K, mask=is_chosen, other=0).to(tl.int32)
    key = tl.where(after_sinks < 0, number, near_from + after_sinks - chosen)
    key = tl.where(is_chosen, start + after_sinks % BLOCK_K, key)
    # a chosen sink was there already
    real = (number < total) & (key >= 0) & (key <= last) & ((key >= sinks) | ~is_chosen)
    return key, after_sinks >= chosen, real


@triton.jit
def _seen(row, key, near, real, window):  # type: ignore[no-untyped-def]
    """Which of the keys each row sees; the window's part shows what lies in its window, the others what lies before."""
    in_window = key[None, :] > (row - window)[:, None]
    return real[None, :] & (key[None, :] <= row[:, None]) & (in_window == near[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def forward_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    starts,
    counts,
    first,
    out,
    sums,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    heads,
    group,
    blocks,
    room,
    queries,
    keys,
    head_dim,
    value_dim,
    block_q,
    window,
    sinks,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WORK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Outputs, and the logarithm to base 2 of each row's sum of powers, with a running maximum and a running sum."""
    tiles = tl.cdiv(block_q, ROWS)
    tile = tl.program_id(0) % tiles
    place = (tl.program_id(0) // tiles).to(tl.int64)
    pair, block = place // blocks, (place % blocks).to(tl.int32)
    batch, head = pair // heads, pair % heads
    begin = tl.load(first + batch).to(tl.int32)
    count = tl.load(counts + place).to(tl.int32)
    query, row, is_row, low, high = _rows(begin, tile, block, block_q, queries, ROWS)
    last, far_sinks, chosen, near_from, total = _list(low, high, count, keys, window, sinks, BLOCK_K)
    in_k, in_v = tl.arange(0, HEAD), tl.arange(0, VALUE)
    at = query.to(tl.int64)
    asked = tl.load(
        q + batch * q_batch + head * q_head + at[:, None] * q_token + in_k[None, :],
        mask=is_row[:, None] & (in_k < head_dim)[None, :],
        other=0.0,
    ).to(WORK)
    keys_from = k + batch * k_batch + (head // group) * k_head
    values_from = v + batch * v_batch + (head // group) * v_head
    largest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((ROWS,), dtype=tl.float32)
    mixed = tl.zeros((ROWS, VALUE), dtype=tl.float32)
    for here in range(0, total, COLUMNS):
        number = here + tl.arange(0, COLUMNS)
        key, near, real = _columns(
            number, starts + place * room, last, far_sinks, chosen, near_from, total, sinks, BLOCK_K
        )
        seen = _seen(row, key, near, real, window)
        where = key.to(tl.int64)
        found = tl.load(
            keys_from + where[None, :] * k_token + in_k[:, None],
            mask=real[None, :] & (in_k < head_dim)[:, None],
            other=0.0,
        ).to(WORK)
        scores = tl.where(seen, scale * tl.dot(asked, found, input_precision=PRECISION), float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        # a row that has seen nothing yet
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        powers = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(largest - shift)
        values = tl.load(
            values_from + where[:, None] * v_token + in_v[None, :],
            mask=real[:, None] & (in_v < value_dim)[None, :],
            other=0.0,
        ).to(WORK)
        mixed = mixed * shrink[:, None] + tl.dot(powers.to(WORK), values, input_precision=PRECISION)
        weight = weight * shrink + tl.sum(powers, 1)
        largest = larger
    blind = weight == 0.0
    mixed = mixed / tl.where(blind, 1.0, weight)[:, None]
    row_of = pair * queries + at
    tl.store(
        out + row_of[:, None] * value_dim + in_v[None, :],
        mixed.to(out.dtype.element_ty),
        mask=is_row[:, None] & (in_v < value_dim)[None, :],
    )
    total_power = tl.where(blind, 0.0, largest + tl.log2(tl.where(blind, 1.0, weight)))
    tl.store(sums + row_of, total_power, mask=is_row)


@triton.jit  # type: ignore[untyped-decorator]
def backward_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    starts,
    counts,
    first,
    out,
    sums,
    d_out,
    d_q,
    d_k,
    d_v,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    o_batch,
    o_head,
    o_token,
    heads,
    group,
    blocks,
    room,
    queries,
    keys,
    head_dim,
    value_dim,
    block_q,
    window,
    sinks,
    scale,
    factor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WORK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of the rows' queries; what they add to those of keys and values is added atomically, in float32."""
    tiles = tl.cdiv(block_q, ROWS)
    tile = tl.program_id(0) % tiles
    place = (tl.program_id(0) // tiles).to(tl.int64)
    pair, block = place // blocks, (place % blocks).to(tl.int32)
    batch, head = pair // heads, pair % heads
    begin = tl.load(first + batch).to(tl.int32)
    count = tl.load(counts + place).to(tl.int32)
    query, row, is_row, low, high = _rows(begin, tile, block, block_q, queries, ROWS)
    last, far_sinks, chosen, near_from, total = _list(low, high, count, keys, window, sinks, BLOCK_K)
    in_k, in_v = tl.arange(0, HEAD), tl.arange(0, VALUE)
    has_k, has_v = (in_k < head_dim)[None, :], (in_v < value_dim)[None, :]
    at = query.to(tl.int64)
    row_of = pair * queries + at
    asked = tl.load(
        q + batch * q_batch + head * q_head + at[:, None] * q_token + in_k[None, :],
        mask=is_row[:, None] & has_k,
        other=0.0,
    ).to(WORK)
    upstream = tl.load(
        d_out + batch * o_batch + head * o_head + at[:, None] * o_token + in_v[None, :],
        mask=is_row[:, None] & has_v,
        other=0.0,
    )
    mixed = tl.load(out + row_of[:, None] * value_dim + in_v[None, :], mask=is_row[:, None] & has_v, other=0.0)
    level = tl.sum(mixed.to(tl.float32) * upstream.to(tl.float32), 1)
    upstream = upstream.to(WORK)
    total_power = tl.load(sums + row_of, mask=is_row, other=0.0)
    shared = batch * (heads // group) + head // group
    keys_from = k + batch * k_batch + (head // group) * k_head
    values_from = v + batch * v_batch + (head // group) * v_head
    d_asked = tl.zeros((ROWS, HEAD), dtype=tl.float32)
    for here in range(0, total, COLUMNS):
        number = here + tl.arange(0, COLUMNS)
        key, near, real = _columns(
            number, starts + place * room, last, far_sinks, chosen, near_from, total, sinks, BLOCK_K
        )
        seen = _seen(row, key, near, real, window) & is_row[:, None]
        where = key.to(tl.int64)
        found = tl.load(keys_from + where[:, None] * k_token + in_k[None, :], mask=real[:, None] & has_k, other=0.0).to(
            WORK
        )
        values = tl.load(
            values_from + where[:, None] * v_token + in_v[None, :], mask=real[:, None] & has_v, other=0.0
        ).to(WORK)
        scores = scale * tl.dot(asked, tl.trans(found), input_precision=PRECISION)
        weights = tl.exp2(tl.where(seen, scores - total_power[:, None], float("-inf")))
        d_weights = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
        d_scores = (factor * weights * (d_weights - level[:, None])).to(WORK)
        d_asked += tl.dot(d_scores, found, input_precision=PRECISION)
        d_values = tl.dot(tl.trans(weights.to(WORK)), upstream, input_precision=PRECISION)
        d_keys = tl.dot(tl.trans(d_scores), asked, input_precision=PRECISION)
        owner = (shared * keys + where)[:, None]
        tl.atomic_add(d_k + owner * head_dim + in_k[None, :], d_keys, mask=real[:, None] & has_k, sem="relaxed")
        tl.atomic_add(d_v + owner * value_dim + in_v[None, :], d_values, mask=real[:, None] & has_v, sem="relaxed")
    tl.store(
        d_q + row_of[:, None] * head_dim + in_k[None, :],
        d_asked.to(d_q.dtype.element_ty),
        mask=is_row[:, None] & has_k,
    )
