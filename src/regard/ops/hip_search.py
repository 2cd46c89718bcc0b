"""HiP's mask search: for each block of queries, a search through a tree over the keys for the blocks that score best.

The keys before a block's window are cut into m ranges of nearly equal size. At every level each range is halved, each
half is scored by the blocks of keys that stand for it, and the best m halves go on, until every range is one block.
A half's score is the largest raw product of its keys with every other query of the block.
Paper: "HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning", Lee et al., 2024,
https://arxiv.org/abs/2406.09827, algorithm 1.
Compared with DeepAuto-AI/hip-attention@fea42c77, `src/hip_attn/v1_1/attention2_draft.py:masking_iteration_draft`.
Different from the code: all blocks of queries go down the tree together; the left half of a range starts with the very
block that stood for the range, so that its score is not computed again; a score that is not a number counts as the
lowest; a block with a single real query is scored by that one. On CUDA the kernel of `regard.ops.triton.hip_search`
runs where it can take the inputs.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.backend import Backend, in_kernels
from regard.ops.block_sparse import BlockChoice
from regard.ops.precision import product_dtype, without_autocast

Sample = Literal["first", "center"]
SAMPLES: tuple[Sample, ...] = get_args(Sample)
SLICE_BYTES = 1 << 22
"""Keys that stand for ranges and are in memory at once on a CPU, about."""
CACHED_BYTES = 3 << 19
"""Such keys and their products that are in the processor's cache at once, about."""

Queries = Float[Tensor, "batch heads queries head_dim"]
Keys = Float[Tensor, "batch kv_heads keys head_dim"]
Ranges = Int[Tensor, "batch heads blocks ranges"]


def check_search(*, mask_k: int, block_q: int, block_k: int, window: int, sample: Sample) -> None:
    """Refuse a search that cannot be made.

    Raises:
        ValueError: a block that is empty, a budget that is no multiple of `block_k`, a window smaller than a block, or
            an unknown representative.
    """
    if block_q < 1 or block_k < 1:
        raise ValueError(f"block_q and block_k must be positive, got block_q={block_q} and block_k={block_k}")
    if mask_k < block_k or mask_k % block_k:
        raise ValueError(f"mask_k must be a positive multiple of block_k={block_k}, got {mask_k}")
    if window < block_k:
        raise ValueError(f"window must be at least block_k={block_k}, got {window}")
    if sample not in SAMPLES:
        raise ValueError(f"sample must be one of {', '.join(SAMPLES)}, got {sample!r}")


@torch.no_grad()
@without_autocast
def search_key_blocks(
    q: Queries,
    k: Keys,
    *,
    first: int | Int[Tensor, " batch"],
    lengths: Int[Tensor, " batch"] | None = None,
    mask_k: int,
    block_q: int,
    block_k: int,
    window: int,
    sample: Sample = "first",
    backend: Backend = "auto",
) -> BlockChoice:
    """The blocks of keys that each block of queries attends to, ascending; the choice has no gradient.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries'.
        first: position of the first query among the keys, for all rows or for each.
        lengths: number of real keys of every row, which lie at its front; None = all that causality shows.
        mask_k: keys to choose; a multiple of `block_k`.
        block_q: queries in a block.
        block_k: keys in a block.
        window: keys up to a block's last query that are not searched, since a window shows them; at least `block_k`.
        sample: which block stands for a half: its first, or the one at its centre.
        backend: "auto" = the Triton kernel on CUDA where it takes the inputs, else PyTorch; "torch" and "triton" force
            one. Between equal scores they may choose differently.

    Raises:
        ValueError: as `check_search`, or, with `backend="triton"`, what the kernel cannot take or a machine without it.
    """
    check_search(mask_k=mask_k, block_q=block_q, block_k=block_k, window=window, sample=sample)
    blocks, keys = -(-q.shape[2] // block_q), k.shape[2]
    places = torch.as_tensor(first, device=q.device).expand(q.shape[0])
    last = (places + q.shape[2]).clamp(max=keys)
    last = last if lengths is None else torch.minimum(last, lengths)
    sizes = mask_k // block_k, block_q, block_k
    if _in_kernel(q, k, sizes, backend):
        return _run_kernel(q, k, places, last, sizes, window=window, sample=sample)
    ends = places[:, None] + block_q * torch.arange(1, blocks + 1, device=q.device)
    visible = torch.minimum(ends, last[:, None])
    asked = _asked_queries(q, first=places, last=last, block_q=block_q).to(product_dtype(q))
    tree = _Tree(k, asked, budget=mask_k // block_k, block_k=block_k, window=window, sample=sample)
    at_once, parts = tree.blocks_at_once(q), []
    latest = first if isinstance(first, int) else keys - 1
    for start, stop, levels in _spans(latest, blocks, keys, mask_k=mask_k, sizes=(block_q, block_k, window)):
        for begin in range(start, stop, at_once):
            some = slice(begin, min(begin + at_once, stop))
            parts.append(tree.search(asked[:, :, some], visible[:, some], levels))
    starts, counts = (torch.cat(x, dim=2) for x in zip(*parts, strict=True))
    return BlockChoice(starts * block_k, counts, block_q=block_q, block_k=block_k)


def scored_key_blocks(*, visible: int, mask_k: int, block_k: int, window: int, sample: Sample = "first") -> int:
    """How many blocks of keys are scored for one block of queries that sees `visible` keys, its window included."""
    budget = mask_k // block_k
    return _scored(_levels(max(0, visible - window), mask_k, block_k), budget, sample)


def search_macs(
    *, first: int, queries: int, mask_k: int, block_q: int, block_k: int, window: int, sample: Sample, head_dim: int
) -> int:
    """Contraction MACs of `search_key_blocks` for one head: arguments as there, `head_dim` the width of a key."""
    blocks, keys = -(-queries // block_q), first + queries
    asked = max(1, block_q // 2)
    spans = _spans(first, blocks, keys, mask_k=mask_k, sizes=(block_q, block_k, window))
    scored = sum((stop - start) * _scored(levels, mask_k // block_k, sample) for start, stop, levels in spans)
    return scored * block_k * asked * head_dim


def _scored(levels: int, budget: int, sample: Sample) -> int:
    if levels == 0:
        return 0
    return budget * (levels + 1 if sample == "first" else 2 * levels)


def _levels(searched: int, mask_k: int, block_k: int) -> int:
    """Halvings until the ranges that share `searched` keys are single blocks."""
    levels, size = 0, -(-searched // block_k) / (mask_k // block_k)
    while size > 1:
        levels, size = levels + 1, size / 2
    return levels


def _spans(
    latest: int, blocks: int, keys: int, *, mask_k: int, sizes: tuple[int, int, int]
) -> list[tuple[int, int, int]]:
    """Blocks of queries from, up to, and the levels that they need at most; more levels than needed change nothing."""
    block_q, block_k, window = sizes
    spans: list[tuple[int, int, int]] = []
    for block in range(blocks):
        searched = max(0, min(latest + (block + 1) * block_q, keys) - window)
        levels = _levels(searched, mask_k, block_k)
        if spans and spans[-1][2] == levels:
            spans[-1] = (spans[-1][0], block + 1, levels)
        else:
            spans.append((block, block + 1, levels))
    return spans


def _asked_queries(
    q: Queries, *, first: Tensor, last: Tensor, block_q: int
) -> Float[Tensor, "batch heads blocks asked head_dim"]:
    """Every other query of each block, from its second on; what is not real repeats one that is."""
    blocks = -(-q.shape[2] // block_q)
    by_block = pad(q, (0, 0, 0, blocks * block_q - q.shape[2])).unflatten(2, (blocks, block_q))
    if block_q == 1:
        return by_block
    rows = first[:, None, None] + torch.arange(blocks * block_q, device=q.device).view(blocks, block_q)
    real = (rows < last[:, None, None])[:, None, :, :, None]
    instead = torch.where(real[..., 1:2, :], by_block[..., 1:2, :], by_block[..., :1, :])
    return torch.where(real[..., 1::2, :], by_block[..., 1::2, :], instead)


def _in_kernel(q: Tensor, k: Tensor, sizes: tuple[int, int, int], backend: Backend) -> bool:
    def refused() -> str | None:
        from regard.ops.triton.hip_search import refusal

        budget, block_q, block_k = sizes
        return refusal(q, k, budget=budget, block_q=block_q, block_k=block_k)

    return in_kernels(q, backend, refused)


def _run_kernel(
    q: Tensor, k: Tensor, first: Tensor, last: Tensor, sizes: tuple[int, int, int], *, window: int, sample: Sample
) -> BlockChoice:
    from regard.ops.triton.hip_search import search_operator

    _, block_q, block_k = sizes
    starts, counts = search_operator(q, k, first, last, *sizes, window, sample == "center")
    return BlockChoice(starts, counts, block_q=block_q, block_k=block_k)


class _Tree:
    """The search for some blocks of queries at a time, in numbers of blocks of keys."""

    def __init__(self, k: Tensor, asked: Tensor, *, budget: int, block_k: int, window: int, sample: Sample) -> None:
        keys, width = k.shape[2:]
        if asked.shape[2] * budget * block_k >= keys:
            # most keys stand for some range
            k = k.to(asked.dtype)
        # where blocks fill a head, a block is one row; the window keeps the last, unfilled block out of the search
        self._keys_per_row = 1 if keys % block_k else block_k
        self._rows = k.reshape(-1, self._keys_per_row * width)
        self._kv_heads, self._rows_per_head = k.shape[1], keys // self._keys_per_row
        self._budget, self._block_k, self._window, self._sample = budget, block_k, window, sample
        self._products_at_once = asked.shape[:3].numel()
        self._memory: tuple[Tensor, Tensor] | None = None
        if asked.shape[2] > 1 and k.device.type == "cpu" and not torch.compiler.is_compiling():
            one = (2 if sample == "center" else 1) * budget * block_k
            cached = CACHED_BYTES // (one * (width + asked.shape[3]) * asked.element_size())
            self._products_at_once = at_once = max(1, min(cached, self._products_at_once))
            self._memory = k.new_empty(at_once * one * width), asked.new_empty(at_once * one * asked.shape[3])

    def blocks_at_once(self, q: Tensor) -> int:
        if q.device.type != "cpu":
            return q.shape[2]
        width = self._block_k * q.shape[-1] * self._rows.element_size()
        return max(1, SLICE_BYTES // (q.shape[0] * q.shape[1] * self._budget * width))

    def search(self, asked: Tensor, visible: Int[Tensor, "batch blocks"], levels: int) -> tuple[Ranges, Tensor]:
        """Numbers of the chosen blocks, ascending, and how many of them hold."""
        ranges = torch.arange(self._budget, device=asked.device)
        heads = (-1, asked.shape[1], -1, -1)
        searched = (visible - self._window).clamp(min=0)
        count = (searched + self._block_k - 1) // self._block_k
        counts = count.clamp(max=self._budget)[:, None].expand(heads[:-1])
        everything = ranges.expand(*asked.shape[:3], -1)
        if levels == 0:
            return everything, counts
        share = count.double()[..., None] / self._budget
        starts = (share * ranges).long()
        sizes = (share * (ranges + 1)).long() - starts
        chosen = self._descend(asked, starts[:, None].expand(heads), sizes[:, None].expand(heads), levels)
        needed = (count > self._budget)[:, None, :, None]
        return torch.where(needed, chosen.sort(dim=-1).values, everything), counts

    def _descend(self, asked: Tensor, starts: Ranges, sizes: Ranges, levels: int) -> Ranges:
        reused = self._sample == "first"
        scores = self._score(asked, starts) if reused else None
        for _ in range(levels):
            # a shift, for a division of integers was measured to take three times as long
            left = sizes >> 1
            middles = starts + left
            halves, half_sizes = torch.cat((starts, middles), dim=-1), torch.cat((left, sizes - left), dim=-1)
            if scores is None:
                both = self._score(asked, halves + (half_sizes >> 1))
            else:
                both = torch.cat((scores, self._score(asked, middles)), dim=-1)
            kept = both.masked_fill(half_sizes == 0, -torch.inf).topk(self._budget, dim=-1, sorted=False).indices
            starts, sizes = halves.gather(-1, kept), half_sizes.gather(-1, kept)
            scores = both.gather(-1, kept) if reused else None
        return starts

    def _score(self, asked: Tensor, numbers: Ranges) -> Float[Tensor, "batch heads blocks ranges"]:
        """The largest product of the asked queries with the keys of each block; not a number counts as the lowest."""
        batch, heads, _, ranges = numbers.shape
        owners = torch.arange(batch * self._kv_heads, device=numbers.device) * self._rows_per_head
        owners = owners.repeat_interleave(heads // self._kv_heads).view(batch, heads, 1, 1)
        per_block = self._block_k // self._keys_per_row
        rows = (per_block * numbers + owners).flatten(0, 2)
        if per_block > 1:
            rows = (rows[..., None] + torch.arange(per_block, device=numbers.device)).flatten(1)
        # keys down and queries across: their product was measured to be faster that way round
        across, best = asked.flatten(0, 2).transpose(1, 2), []
        for some, queries in zip(*(x.split(self._products_at_once) for x in (rows, across)), strict=True):
            products = self._products(some, queries).view(-1, ranges, self._block_k * queries.shape[2])
            best.append(products.amax(dim=-1))
        return torch.cat(best).view_as(numbers).nan_to_num(nan=torch.finfo(asked.dtype).min)

    def _products(self, rows: Tensor, queries: Tensor) -> Float[Tensor, "blocks keys asked"]:
        """Those of each block of queries with its keys; valid until the next call."""
        blocks, width, asked = queries.shape
        rows = rows.flatten()
        if self._memory is None:
            keys = self._rows.index_select(0, rows)
            return torch.bmm(keys.view(blocks, -1, width).to(queries.dtype), queries)
        gathered, products = self._memory
        # fresh memory for each was measured to double the time of the gathering
        keys = gathered[: len(rows) * self._rows.shape[1]].view(len(rows), -1)
        torch.index_select(self._rows, 0, rows, out=keys)
        keys = keys.view(blocks, -1, width).to(queries.dtype)
        return torch.bmm(keys, queries, out=products[: keys.shape[1] * blocks * asked].view(blocks, -1, asked))
