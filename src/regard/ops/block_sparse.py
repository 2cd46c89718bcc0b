"""Block-sparse attention: blocks of queries attend to chosen blocks of keys, to a sliding window, and to sinks.

What is chosen is data, one choice for every block of queries and every head. A query sees the keys of its block's
choice that lie before its window, the window itself (`window` keys, its own the last), and the first `sinks` keys;
a key that is there twice counts once. The fast path gathers the keys of a block of queries once and attends to them
in one fused product, so that time and memory are linear in the number of queries; without gradients on a CPU
`regard.ops.block_sparse_inner` reads most windows where they are. On CUDA the kernels of
`regard.ops.triton.block_sparse` read the keys where they are, where they can take the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from regard.ops.backend import Backend, in_kernels
from regard.ops.precision import product_dtype, without_autocast
from regard.ops.softmax_attention import softmax_attention_reference

SLICE_BYTES = 1 << 22
"""Gathered keys and values that are in memory at once on a CPU, about."""

Queries = Float[Tensor, "batch heads queries head_dim"]
Keys = Float[Tensor, "batch kv_heads keys head_dim"]
Values = Float[Tensor, "batch kv_heads keys value_dim"]


@dataclass(frozen=True)
class BlockChoice:
    """The blocks of keys that each block of queries attends to, per head.

    Args:
        starts: position of the first key of each chosen block, each block once.
        counts: how many of `starts` hold, from the left.
        block_q: queries in a block; the last block may be shorter.
        block_k: keys in a block.
    """

    starts: Int[Tensor, "batch heads blocks chosen"]
    counts: Int[Tensor, "batch heads blocks"]
    block_q: int
    block_k: int

    def of_blocks(self, first: int, last: int) -> BlockChoice:
        """The choice of the blocks of queries from `first` up to `last`, without it."""
        return replace(self, starts=self.starts[:, :, first:last], counts=self.counts[:, :, first:last])


@dataclass(frozen=True)
class Reach:
    """What every query sees beside the choice.

    Args:
        window: keys up to and with the query's own; at least 1, so that no row is empty.
        sinks: keys at the beginning.

    Raises:
        ValueError: a window that is not positive, or sinks below 0.
    """

    window: int
    sinks: int = 0

    def __post_init__(self) -> None:
        if self.window < 1 or self.sinks < 0:
            raise ValueError(
                f"window must be at least 1 and sinks at least 0, got window={self.window} and sinks={self.sinks}"
            )


def block_sparse_visible(
    choice: BlockChoice, reach: Reach, *, first: Int[Tensor, " batch"], queries: int, keys: int
) -> Bool[Tensor, "batch heads queries keys"]:
    """The whole map of visible keys; arguments as for `block_sparse_attention`. Quadratic."""
    columns = torch.arange(keys, device=choice.starts.device)
    rows = (first[:, None] + torch.arange(queries, device=first.device))[:, None, :, None]
    inside = columns - choice.starts[..., None]
    hold = torch.arange(choice.starts.shape[-1], device=columns.device) < choice.counts[..., None]
    by_block = ((inside >= 0) & (inside < choice.block_k) & hold[..., None]).any(dim=-2)
    chosen = by_block.repeat_interleave(choice.block_q, dim=2)[:, :, :queries]
    return (chosen | (columns > rows - reach.window) | (columns < reach.sinks)) & (columns <= rows)


def block_sparse_attention_reference(
    q: Queries, k: Keys, v: Values, choice: BlockChoice, reach: Reach, *, first: Int[Tensor, " batch"]
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Full attention under the whole map. Arguments as for `block_sparse_attention`."""
    visible = block_sparse_visible(choice, reach, first=first, queries=q.shape[2], keys=k.shape[2])
    return softmax_attention_reference(q, k, v, visible=visible)


@without_autocast
def block_sparse_attention(
    q: Queries,
    k: Keys,
    v: Values,
    choice: BlockChoice,
    reach: Reach,
    *,
    first: Int[Tensor, " batch"],
    backend: Backend = "auto",
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Attention to chosen blocks, in linear time and memory; equals `block_sparse_attention_reference`.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries' (grouped-query attention); keys after the last query's
            own are never read.
        v: values.
        choice: which blocks, for every head of `q`.
        reach: what is seen beside them.
        first: position of the first query of every row among the keys.
        backend: "auto" = the Triton kernels on CUDA where they take the inputs, else PyTorch; "torch" and "triton"
            force one.

    Raises:
        ValueError: shapes that do not fit, or, with `backend="triton"`, what the kernels cannot take or a machine
            without them.
    """
    blocks = choice.starts.shape[2]
    _check(q, k, v, choice)
    if _in_kernels(q, k, v, backend):
        return _run_kernels(q, k, v, choice, reach, first)
    from regard.ops.block_sparse_inner import attend_inner_blocks, inner_blocks

    inner = inner_blocks(q, k, v, choice, reach, first=first)
    if inner is None:
        return _gathered(q, k, v, choice, reach, first).to(q.dtype)
    place, inside = inner
    mixed = q.new_empty(*q.shape[:3], v.shape[-1])
    attend_inner_blocks(q, k, v, choice, reach, place=place, blocks=inside, mixed=mixed)
    for start, stop in ((0, inside.start), (inside.stop, blocks)):
        if start < stop:
            rows, outer = slice(start * choice.block_q, stop * choice.block_q), choice.of_blocks(start, stop)
            mixed[:, :, rows] = _gathered(q[:, :, rows], k, v, outer, reach, first + rows.start)
    return mixed


def block_sparse_macs(*, blocks: int, block_q: int, chosen: int, reach: Reach, head_dim: int, value_dim: int) -> int:
    """Contraction MACs of `block_sparse_attention` for one head; what a mask hides counts too.

    Args:
        blocks: blocks of queries.
        block_q: queries in a block.
        chosen: keys that the choice has room for.
        reach: what is seen beside it.
        head_dim: width of queries and keys.
        value_dim: width of values.
    """
    columns = chosen + reach.window + block_q - 1 + reach.sinks
    return blocks * block_q * columns * (head_dim + value_dim)


def _gathered(q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice, reach: Reach, first: Tensor) -> Tensor:
    """Every block's keys side by side, some blocks at a time, under a mask; in the type of the products."""
    blocks, at_once = choice.starts.shape[2], _blocks_at_once(k, v, choice, reach)
    dtype = product_dtype(q)
    missing = blocks * choice.block_q - q.shape[2]
    by_block = pad(q, (0, 0, 0, missing)).to(dtype).unflatten(2, (blocks, choice.block_q))
    sources = tuple(x.reshape(-1, x.shape[-1]) for x in (k, v))
    parts = []
    for start in range(0, blocks, at_once):
        stop = min(start + at_once, blocks)
        columns = _Columns(choice.of_blocks(start, stop), reach, first=first + start * choice.block_q, keys=k.shape[2])
        rows = columns.rows_of(k).flatten()
        kept = tuple(x.index_select(0, rows).to(dtype).unflatten(0, (-1, 1, columns.count)) for x in sources)
        own = by_block[:, :, start:stop].reshape(-1, 1, choice.block_q, q.shape[-1])
        visible = columns.visible().flatten(0, 2)[:, None]
        mixed = scaled_dot_product_attention(own, kept[0], kept[1], attn_mask=visible)
        parts.append(mixed.view(*q.shape[:2], (stop - start) * choice.block_q, v.shape[-1]))
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return mixed[:, :, : q.shape[2]]


class _Columns:
    """The keys that each block of queries gathers: sinks, the choice, and the window of all its rows."""

    def __init__(self, choice: BlockChoice, reach: Reach, *, first: Tensor, keys: int) -> None:
        device = choice.starts.device
        self._choice, self._reach, self._keys = choice, reach, keys
        blocks, rows = choice.starts.shape[2], torch.arange(choice.block_q, device=device)
        self._rows = first[:, None, None] + choice.block_q * torch.arange(blocks, device=device)[:, None] + rows
        self._inside = torch.arange(choice.block_k, device=device)
        span = torch.arange(1 - reach.window, choice.block_q, device=device)
        self._window = self._rows[:, :, :1] + span
        self._sinks = torch.arange(reach.sinks, device=device)
        chosen = choice.starts.shape[3] * choice.block_k
        self.count = reach.sinks + chosen + len(span)

    def _chosen(self) -> Int[Tensor, "batch heads blocks chosen"]:
        return (self._choice.starts[..., None] + self._inside).flatten(-2)

    def rows_of(self, k: Tensor) -> Int[Tensor, "batch heads blocks columns"]:
        """Where the keys stand in the rows of `k`, all heads below each other."""
        chosen = self._chosen()
        batch, heads, blocks, _ = chosen.shape
        window = self._window[:, None].expand(-1, heads, -1, -1)
        sinks = self._sinks.expand(batch, heads, blocks, -1)
        places = torch.cat((sinks, chosen, window), dim=-1).clamp(0, self._keys - 1)
        shared = heads // k.shape[1]
        owners = torch.arange(batch * k.shape[1], device=k.device).repeat_interleave(shared) * self._keys
        return places + owners.view(batch, heads, 1, 1)

    def visible(self) -> Bool[Tensor, "batch heads blocks rows columns"]:
        """Which of them each query sees."""
        chosen, rows = self._chosen()[..., None, :], self._rows[:, None, :, :, None]
        before = rows - self._reach.window
        hold = torch.arange(self._choice.starts.shape[-1], device=rows.device) < self._choice.counts[..., None]
        hold = hold.repeat_interleave(self._choice.block_k, dim=-1)[..., None, :]
        seen = hold & (chosen <= before) & (chosen >= self._reach.sinks)
        window = self._window[:, None, :, None]
        near = (window > before) & (window <= rows) & (window >= 0)
        sinks = self._sinks <= before
        heads = seen.shape[1]
        return torch.cat((sinks.expand(-1, heads, -1, -1, -1), seen, near.expand(-1, heads, -1, -1, -1)), dim=-1)


def _in_kernels(q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> bool:
    def refused() -> str | None:
        from regard.ops.triton.block_sparse import refusal

        return refusal(q, k, v)

    return in_kernels(q, backend, refused)


def _run_kernels(q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice, reach: Reach, first: Tensor) -> Tensor:
    from regard.ops.triton.block_sparse import block_sparse_operator

    sizes = choice.block_q, choice.block_k, reach.window, reach.sinks
    return block_sparse_operator(q, k, v, choice.starts, choice.counts, first, *sizes)[0]


def _blocks_at_once(k: Tensor, v: Tensor, choice: BlockChoice, reach: Reach) -> int:
    batch, heads, blocks, chosen = choice.starts.shape
    if k.device.type != "cpu":
        return blocks
    columns = chosen * choice.block_k + reach.window + choice.block_q + reach.sinks
    width = (k.shape[-1] + v.shape[-1]) * k.element_size()
    return max(1, SLICE_BYTES // (batch * heads * columns * width))


def _check(q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice) -> None:
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"keys and values must have equal batch, heads and length: {tuple(k.shape)}, {tuple(v.shape)}")
    blocks = -(-q.shape[2] // choice.block_q)
    if tuple(choice.starts.shape[:3]) != (q.shape[0], q.shape[1], blocks):
        raise ValueError(
            f"the choice is for {tuple(choice.starts.shape[:3])} (batch, heads, blocks), the queries "
            f"{tuple(q.shape)} in blocks of {choice.block_q} need {(q.shape[0], q.shape[1], blocks)}"
        )
