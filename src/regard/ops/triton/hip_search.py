"""HiP's mask search on the GPU: a whole tree search in one kernel, a program for each block of queries.

Paper: "HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning", Lee et al., 2024,
https://arxiv.org/abs/2406.09827, algorithm 1. The plain twin is `search_key_blocks(..., backend="torch")` of
`regard.ops.hip_search`, where the search and what differs from the authors' is described.

At each level a program gathers the blocks of keys that stand for the new halves, multiplies them with the asked
queries, takes the largest product of each, and keeps the best half of the halves. The score that parts them is found by
bisection: floats are turned into integers of the same order, and an integer is looked for that `budget` scores reach,
in some ten counts, or at most 32. Kept halves stay in the order of their keys, so that nothing is sorted, on the way or
at the end. Between equal scores the earlier keys are kept, where the plain search may choose others; it is the
same choice where no two scores are equal. In bfloat16 the products are not rounded, as the plain search's are, and have
fewer ties.

There are fewer programs than blocks of queries, and each searches for one after the other, so that what they write down
on the way is small and stays in the cache.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
from jaxtyping import Float, Int
from torch import Tensor

from regard.ops.triton.hip_search_kernels import search_kernel
from regard.ops.triton.launching import in_rows, on_device, products, refused, tile

LARGEST_BUDGET = 512
"""Blocks that are chosen, at most."""
_SHARED_BYTES = 96 << 10
"""Of shared memory, which tiles of queries, in two parts where they are float32, and keys must fit in."""

_PROGRAMS_PER_MULTIPROCESSOR = 8
_PROGRAMS_IN_INTERPRETER = 3


@torch.library.custom_op("regard::hip_search", mutates_args=())
def search_operator(
    q: Tensor,
    k: Tensor,
    first: Tensor,
    last: Tensor,
    budget: int,
    block_q: int,
    block_k: int,
    window: int,
    center: bool,
) -> tuple[Tensor, Tensor]:
    """First keys of the chosen blocks, ascending, and how many of them hold; arguments as `launch_search`."""
    return launch_search(
        q, k, first, last, budget=budget, block_q=block_q, block_k=block_k, window=window, center=center
    )


@search_operator.register_fake
def _(
    q: Tensor,
    k: Tensor,
    first: Tensor,
    last: Tensor,
    budget: int,
    block_q: int,
    block_k: int,
    window: int,
    center: bool,
) -> tuple[Tensor, Tensor]:
    shape = (*q.shape[:2], -(-q.shape[2] // block_q))
    return q.new_empty(*shape, budget, dtype=torch.int64), q.new_empty(shape, dtype=torch.int64)


def refusal(q: Tensor, k: Tensor, *, budget: int, block_q: int, block_k: int) -> str | None:
    """Why the kernel does not take such inputs; None where it does."""
    if budget > LARGEST_BUDGET or budget & (budget - 1):
        return f"the kernel chooses a power of two of blocks, at most {LARGEST_BUDGET}, got mask_k / block_k = {budget}"
    reason = refused(q, k)
    if reason is not None:
        return reason
    sizes = _tiles(q.shape[-1], block_q=block_q, block_k=block_k, wide=q.dtype == torch.float32)
    numbers = (2 * sizes["ROWS"] + sizes["TILE"] * sizes["PART"]) * sizes["HEAD"]
    if numbers * q.element_size() > _SHARED_BYTES:
        return f"a block's asked queries do not fit in shared memory: block_q={block_q} of width {q.shape[-1]}"
    return None


def launch_search(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    first: Int[Tensor, " batch"],
    last: Int[Tensor, " batch"],
    *,
    budget: int,
    block_q: int,
    block_k: int,
    window: int,
    center: bool,
) -> tuple[Int[Tensor, "batch heads blocks budget"], Int[Tensor, "batch heads blocks"]]:
    """One launch for all blocks of queries.

    Args:
        q: queries.
        k: keys.
        first: position of the first query of every row among the keys.
        last: position after the last real query of every row, at most the number of keys.
        budget: blocks of keys to choose.
        block_q: queries in a block.
        block_k: keys in a block.
        window: keys up to a block's last query that are not searched.
        center: the block at the centre of a half stands for it; else its first.
    """
    (batch, heads, queries, head_dim), keys = q.shape, k.shape[2]
    blocks = triton.cdiv(queries, block_q)
    tasks = batch * heads * blocks
    programs = min(tasks, _programs(q.device))
    starts = torch.empty(batch, heads, blocks, budget, dtype=torch.int64, device=q.device)
    counts = torch.empty(batch, heads, blocks, dtype=torch.int64, device=q.device)
    whole = torch.empty(programs, 3, budget, dtype=torch.int32, device=q.device)
    scores = torch.empty(programs, 2, budget, dtype=torch.float32, device=q.device)
    q, k = in_rows(q), in_rows(k)
    with on_device(q):
        search_kernel[(programs,)](
            q,
            k,
            first.contiguous(),
            last.contiguous(),
            starts,
            counts,
            whole,
            scores,
            *q.stride()[:3],
            *k.stride()[:3],
            heads,
            heads // k.shape[1],
            blocks,
            tasks,
            keys,
            head_dim,
            block_q,
            window,
            BUDGET=budget,
            BLOCK_K=block_k,
            CENTER=center,
            **_tiles(head_dim, block_q=block_q, block_k=block_k, wide=q.dtype == torch.float32),
            **products(q.dtype, keep_float16=True),
            num_warps=4,
            num_stages=1,
        )
    return starts, counts


def _programs(device: torch.device) -> int:
    """Several to a multiprocessor, which hide each other's waiting; in the interpreter few, which take turns too."""
    if device.type != "cuda":
        return _PROGRAMS_IN_INTERPRETER
    return _PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _tiles(head_dim: int, *, block_q: int, block_k: int, wide: bool) -> dict[str, int]:
    """Some 64 keys at once, or 32 where they are large, so that they fit in registers; wide blocks part by part."""
    head = tile(head_dim)
    columns = 32 if wide or head > 128 else 64
    part = min(columns, triton.next_power_of_2(block_k))
    return {"PART": part, "TILE": columns // part, "ROWS": tile(max(1, block_q // 2)), "HEAD": head}
