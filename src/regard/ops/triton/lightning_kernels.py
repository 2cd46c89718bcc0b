"""The two kernels of lightning attention: states along the blocks, then every block by itself.

Papers and notation as in `regard.ops.triton.lightning`, which launches them. Both address batch, head and token by
stride, and a token's own numbers lie side by side; rows have their own `lengths`. Tiles and states are float32.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit  # type: ignore[untyped-decorator]
def states_kernel(  # type: ignore[no-untyped-def]
    k,
    v,
    slopes,
    lengths,
    initial,
    states,
    final,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    heads,
    max_blocks,
    key_width,
    value_width,
    BLOCK: tl.constexpr,
    KEY_SLICE: tl.constexpr,
    VALUE_SLICE: tl.constexpr,
    DECAY: tl.constexpr,
    INITIAL: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The state before each block, and after the last; in `REVERSE` blocks are walked from the last to the first."""
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // heads, pair % heads
    tokens = tl.load(lengths + batch)
    blocks = tl.cdiv(tokens, BLOCK)
    row = tl.arange(0, BLOCK)
    in_k = tl.program_id(1) * KEY_SLICE + tl.arange(0, KEY_SLICE)
    in_v = tl.program_id(2) * VALUE_SLICE + tl.arange(0, VALUE_SLICE)
    size = key_width * value_width
    cell = in_k[:, None] * value_width + in_v[None, :]
    inside = (in_k < key_width)[:, None] & (in_v < value_width)[None, :]
    keys_from = k + batch * k_batch + head * k_head
    values_from = v + batch * v_batch + head * v_head
    state = tl.zeros((KEY_SLICE, VALUE_SLICE), dtype=tl.float32)
    if INITIAL:
        state += tl.load(initial + pair * size + cell, mask=inside, other=0.0)
    if DECAY:
        slope = tl.load(slopes + head)
    for step in range(0, blocks):
        block = step
        if REVERSE:
            block = blocks - 1 - step
        tl.store(states + (pair * max_blocks + block) * size + cell, state, mask=inside)
        token = (block * BLOCK + row).to(tl.int64)
        real = tl.minimum(tokens - block * BLOCK, BLOCK)
        keys = tl.load(
            keys_from + token[None, :] * k_token + in_k[:, None],
            mask=(row < real)[None, :] & (in_k < key_width)[:, None],
            other=0.0,
        ).to(tl.float32)
        values = tl.load(
            values_from + token[:, None] * v_token + in_v[None, :],
            mask=(row < real)[:, None] & (in_v < value_width)[None, :],
            other=0.0,
        ).to(tl.float32)
        if DECAY:
            age = tl.maximum(real - 1 - row, 0)
            if REVERSE:
                age = row + 1
            keys *= tl.exp(-slope * age)[None, :]
            state *= tl.exp(-slope * real)
        state += tl.dot(keys, values, input_precision=PRECISION)
    tl.store(final + pair * size + cell, state, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def outputs_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    slopes,
    lengths,
    states,
    out,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    state_row,
    state_column,
    heads,
    max_blocks,
    max_tokens,
    key_width,
    value_width,
    BLOCK: tl.constexpr,
    KEY_SLICE: tl.constexpr,
    KEY_SLICES: tl.constexpr,
    VALUE_SLICE: tl.constexpr,
    DECAY: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block's outputs: its scores times its values, and what its queries read from the state before it."""
    place = tl.program_id(0).to(tl.int64)
    pair, block = place // max_blocks, place % max_blocks
    batch, head = pair // heads, pair % heads
    row = tl.arange(0, BLOCK)
    token = block * BLOCK + row
    real = tl.minimum(tl.load(lengths + batch) - block * BLOCK, BLOCK)
    is_real = row < real
    in_v = tl.program_id(1) * VALUE_SLICE + tl.arange(0, VALUE_SLICE)
    queries_from = q + batch * q_batch + head * q_head
    keys_from = k + batch * k_batch + head * k_head
    state_from = states + place * key_width * value_width
    scores = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    read = tl.zeros((BLOCK, VALUE_SLICE), dtype=tl.float32)
    for number in tl.static_range(KEY_SLICES):
        in_k = number * KEY_SLICE + tl.arange(0, KEY_SLICE)
        has_column = in_k < key_width
        queries = tl.load(
            queries_from + token[:, None] * q_token + in_k[None, :],
            mask=is_real[:, None] & has_column[None, :],
            other=0.0,
        ).to(tl.float32)
        keys = tl.load(
            keys_from + token[None, :] * k_token + in_k[:, None],
            mask=is_real[None, :] & has_column[:, None],
            other=0.0,
        ).to(tl.float32)
        state = tl.load(
            state_from + in_k[:, None] * state_row + in_v[None, :] * state_column,
            mask=has_column[:, None] & (in_v < value_width)[None, :] & (real > 0),
            other=0.0,
        )
        scores += tl.dot(queries, keys, input_precision=PRECISION)
        read += tl.dot(queries, state, input_precision=PRECISION)
    distance = row[:, None] - row[None, :]
    from_state = row + 1
    if REVERSE:
        distance = -distance
        from_state = tl.maximum(real - 1 - row, 0)
    weights = tl.where(distance >= 0, scores, 0.0)
    if DECAY:
        slope = tl.load(slopes + head)
        weights *= tl.exp(-slope * tl.maximum(distance, 0))
        read *= tl.exp(-slope * from_state)[:, None]
    values = tl.load(
        v + batch * v_batch + head * v_head + token[:, None] * v_token + in_v[None, :],
        mask=is_real[:, None] & (in_v < value_width)[None, :],
        other=0.0,
    ).to(tl.float32)
    read += tl.dot(weights, values, input_precision=PRECISION)
    tl.store(
        out + (pair * max_tokens + token)[:, None] * value_width + in_v[None, :],
        read.to(out.dtype.element_ty),
        mask=(token < max_tokens)[:, None] & (in_v < value_width)[None, :],
    )
