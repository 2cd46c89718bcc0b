"""The kernel of HiP's search: one program goes down the tree for one block of queries after the other.

Notation as in `regard.ops.triton.hip_search`, which launches it. A program keeps its ranges as vectors in registers. To
gather keys, and to move what is kept to the front, it writes them to memory of its own and reads them back, with a
barrier between, which orders what the threads of one program write and read.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

_LOWEST = tl.constexpr(-3.4028234663852886e38)
_HIGHEST = tl.constexpr(3.4028234663852886e38)


@triton.jit  # type: ignore[untyped-decorator]
def _asked(  # type: ignore[no-untyped-def]
    queries_from, q_token, begin, block_q, real_rows, head_dim, ROWS: tl.constexpr, HEAD: tl.constexpr
):
    """Every other query of a block, from its second on; what is not real repeats one that is, its maximum unchanged."""
    row = 2 * tl.arange(0, ROWS) + 1
    instead = tl.where((block_q > 1) & (real_rows > 1), 1, 0)
    row = tl.where((row < block_q) & (row < real_rows), row, instead)
    in_k = tl.arange(0, HEAD)
    at = (begin + row).to(tl.int64)
    return tl.load(
        queries_from + at[:, None] * q_token + in_k[None, :],
        mask=(in_k < head_dim)[None, :],
        other=0.0,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _scores(  # type: ignore[no-untyped-def]
    asked,
    numbers,
    keys_from,
    k_token,
    keys,
    head_dim,
    numbers_kept,
    scores_kept,
    BUDGET: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
    TILE: tl.constexpr,
    HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """For each block of keys the largest product with an asked query; not a number counts as the lowest."""
    every = tl.arange(0, BUDGET)
    tl.store(numbers_kept + every, numbers)
    tl.debug_barrier()
    in_k = tl.arange(0, HEAD)
    column, in_tile = tl.arange(0, TILE * PART), tl.arange(0, TILE)
    for here in range(0, BUDGET, TILE):
        place = here + column // PART
        number = tl.load(numbers_kept + place, mask=place < BUDGET, other=0)
        best = tl.full((TILE,), _LOWEST, dtype=tl.float32)
        spoiled = tl.zeros((TILE,), dtype=tl.int32)
        for part in range(0, BLOCK_K, PART):
            inside = part + column % PART
            key = number * BLOCK_K + inside
            real = (place < BUDGET) & (inside < BLOCK_K) & (key < keys)
            found = tl.load(
                keys_from + key.to(tl.int64)[None, :] * k_token + in_k[:, None],
                mask=real[None, :] & (in_k < head_dim)[:, None],
                other=0.0,
            ).to(asked.dtype)
            products = tl.dot(asked, found, input_precision=PRECISION)
            unknown = real[None, :] & (products != products)
            products = tl.where(real[None, :] & ~unknown, products, _LOWEST)
            best = tl.maximum(best, tl.max(tl.reshape(tl.max(products, 0), (TILE, PART)), 1))
            spoiled = tl.maximum(spoiled, tl.max(tl.reshape(tl.max(unknown.to(tl.int32), 0), (TILE, PART)), 1))
        best = tl.where(spoiled > 0, _LOWEST, tl.minimum(best, _HIGHEST))
        tl.store(scores_kept + here + in_tile, best, mask=here + in_tile < BUDGET)
    tl.debug_barrier()
    return tl.load(scores_kept + every)


@triton.jit
def _ordered(scores):  # type: ignore[no-untyped-def]
    """Integers in the order of the scores: the bits of a float, those below its sign turned where it is negative."""
    bits = scores.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _reach(left, right, level):  # type: ignore[no-untyped-def]
    """How many are at least `level`."""
    return tl.sum((left >= level).to(tl.int32) + (right >= level).to(tl.int32), 0)


@triton.jit
def _level(left, right, wanted):  # type: ignore[no-untyped-def]
    """An integer that `wanted` of both reach; where equal ones leave none, the largest that more do. By bisection."""
    low = tl.minimum(tl.min(left, 0), tl.min(right, 0))
    high = tl.maximum(tl.max(left, 0), tl.max(right, 0))
    reached = _reach(left, right, low)
    while (low < high) & (reached != wanted):
        # the mean, rounded up, of numbers whose sum may leave the range
        middle = (low | high) - ((low ^ high) >> 1)
        many = _reach(left, right, middle)
        enough = many >= wanted
        low = tl.where(enough, middle, low)
        reached = tl.where(enough, many, reached)
        high = tl.where(enough, high, middle - 1)
    return low


@triton.jit  # type: ignore[untyped-decorator]
def _best(left_scores, right_scores, sizes, BUDGET: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which left and right halves are kept, and where the range's first kept half goes; equal ones from the left on."""
    has_left, has_right = sizes // 2 > 0, sizes - sizes // 2 > 0
    left = _ordered(tl.where(has_left, left_scores, float("-inf")))
    right = _ordered(tl.where(has_right, right_scores, float("-inf")))
    level = _level(left, right, BUDGET)
    room = BUDGET - tl.sum((left > level).to(tl.int32) + (right > level).to(tl.int32), 0)
    left_equal, right_equal = (left == level).to(tl.int32), (right == level).to(tl.int32)
    before = tl.cumsum(left_equal + right_equal, 0) - left_equal - right_equal
    keep_left = (left > level) | ((left_equal > 0) & (before < room))
    keep_right = (right > level) | ((right_equal > 0) & (before + left_equal < room))
    kept = keep_left.to(tl.int32) + keep_right.to(tl.int32)
    return keep_left, keep_right, tl.cumsum(kept, 0) - kept


@triton.jit  # type: ignore[untyped-decorator]
def _moved(left, right, keep_left, keep_right, to, kept, BUDGET: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of the halves those that are kept, in their order."""
    tl.store(kept + to, left, mask=keep_left)
    tl.store(kept + to + keep_left.to(tl.int32), right, mask=keep_right)
    tl.debug_barrier()
    return tl.load(kept + tl.arange(0, BUDGET))


@triton.jit  # type: ignore[untyped-decorator]
def search_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    first,
    last,
    starts,
    counts,
    whole_kept,
    scores_kept,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    heads,
    group,
    blocks,
    tasks,
    keys,
    head_dim,
    block_q,
    window,
    BUDGET: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD: tl.constexpr,
    CENTER: tl.constexpr,
    WORK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """First keys of the chosen blocks, ascending, and how many of them hold, for task after task."""
    every = tl.arange(0, BUDGET)
    whole = whole_kept + tl.program_id(0) * 3 * BUDGET
    scored = scores_kept + tl.program_id(0) * 2 * BUDGET
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        place = tl.cast(task, tl.int64)
        pair, block = place // blocks, task % blocks
        batch, head = pair // heads, pair % heads
        begin = block * block_q
        at, end = tl.load(first + batch).to(tl.int32), tl.load(last + batch).to(tl.int32)
        searched = tl.maximum(tl.minimum(at + begin + block_q, end) - window, 0)
        count = (searched + BLOCK_K - 1) // BLOCK_K
        start = every
        if count > BUDGET:
            keys_from = k + batch * k_batch + (head // group) * k_head
            asked = _asked(
                q + batch * q_batch + head * q_head, q_token, begin, block_q, end - at - begin, head_dim, ROWS, HEAD
            ).to(WORK)
            share = (every + 1).to(tl.int64) * count // BUDGET
            start = (every.to(tl.int64) * count // BUDGET).to(tl.int32)
            size = share.to(tl.int32) - start
            own = tl.zeros((BUDGET,), dtype=tl.float32)
            if not CENTER:
                own = _scores(
                    asked,
                    start,
                    keys_from,
                    k_token,
                    keys,
                    head_dim,
                    whole,
                    scored,
                    BUDGET,
                    BLOCK_K,
                    PART,
                    TILE,
                    HEAD,
                    PRECISION,
                )
            within = BUDGET
            while within < count:
                middle = start + size // 2
                stands = middle
                if CENTER:
                    own = _scores(
                        asked,
                        start + size // 2 // 2,
                        keys_from,
                        k_token,
                        keys,
                        head_dim,
                        whole,
                        scored,
                        BUDGET,
                        BLOCK_K,
                        PART,
                        TILE,
                        HEAD,
                        PRECISION,
                    )
                    stands = middle + (size - size // 2) // 2
                other = _scores(
                    asked,
                    stands,
                    keys_from,
                    k_token,
                    keys,
                    head_dim,
                    whole,
                    scored,
                    BUDGET,
                    BLOCK_K,
                    PART,
                    TILE,
                    HEAD,
                    PRECISION,
                )
                keep_left, keep_right, to = _best(own, other, size, BUDGET)
                start = _moved(start, middle, keep_left, keep_right, to, whole + BUDGET, BUDGET)
                size = _moved(size // 2, size - size // 2, keep_left, keep_right, to, whole + 2 * BUDGET, BUDGET)
                if not CENTER:
                    own = _moved(own, other, keep_left, keep_right, to, scored + BUDGET, BUDGET)
                within *= 2
        tl.store(starts + place * BUDGET + every, start.to(tl.int64) * BLOCK_K)
        tl.store(counts + place, tl.minimum(count, BUDGET).to(tl.int64))
