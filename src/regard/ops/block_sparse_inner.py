"""Block-sparse attention without gradients on a CPU, for the blocks of queries whose window and sinks lie apart.

For such inner blocks the whole choice is seen by every query of the block, so that a mask is needed at the two ends of
the window alone; a key of the window that is chosen too, or a sink, counts where it was chosen. The window's keys are
read where they are, as overlapping views of the keys; only sinks and choice are gathered. Scores stand in a workspace
that is used again for every few blocks, keys down and queries across, so that what is masked is whole rows. The blocks
at the ends of a sequence, and all else, are for the general form in `regard.ops.block_sparse`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.block_sparse import BlockChoice, Reach
from regard.ops.precision import product_dtype

SCORES_BYTES = 3 << 19
"""Scores in the workspace, about."""

BLOCKS = 32
"""Blocks of queries whose places are computed at once."""

SMALLEST_SUM, LARGEST_SUM = 2.0**-60, 2.0**100
"""A row's weights may be taken without their largest score subtracted first where their sum is between these: none
has overflown, and what has vanished is less than the rounding of the sum."""


def inner_blocks(
    q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice, reach: Reach, *, first: Int[Tensor, " batch"]
) -> tuple[int, range] | None:
    """The place of the first query and the blocks of queries that `attend_inner_blocks` can take, None without any.

    Arguments as for `regard.ops.block_sparse.block_sparse_attention`.
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling() or not 1 < choice.block_q <= reach.window:
        return None
    if not choice.starts.shape[-1] + reach.sinks:
        # a window alone: there is nothing to gather
        return None
    if not len(first) or (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
        return None
    place = int(first[0])
    if len(first) > 1 and bool((first != place).any()):
        return None
    start = max(0, -(-(reach.window - 1 + reach.sinks - place) // choice.block_q))
    blocks = range(start, min(q.shape[2], k.shape[2] - place) // choice.block_q)
    # keys of another type are converted whole: not worth it for a few queries behind many keys
    worth = k.dtype == v.dtype == product_dtype(q) or len(blocks) * _columns(choice, reach) >= k.shape[2]
    return (place, blocks) if blocks and worth else None


def attend_inner_blocks(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    choice: BlockChoice,
    reach: Reach,
    *,
    place: int,
    blocks: range,
    mixed: Float[Tensor, "batch heads queries value_dim"],
) -> None:
    """Write what the queries of the inner blocks find into their rows of `mixed`.

    Args:
        q: queries, those of all blocks.
        k: keys; their heads may be fewer than the queries'.
        v: values.
        choice: which blocks, for all blocks of queries.
        reach: what is seen beside them.
        place: position of the first query.
        blocks: the blocks of queries, as `inner_blocks` found them.
        mixed: the output.
    """
    dtype, rows = product_dtype(q), slice(blocks.start * choice.block_q, blocks.stop * choice.block_q)
    inner, shared = choice.of_blocks(blocks.start, blocks.stop), q.shape[1] // k.shape[1]
    workspace = _Workspace(q.new_empty(0, dtype=dtype), inner, reach, widths=(k.shape[-1], v.shape[-1]))
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            if head % shared == 0:
                keys, values = (x[row, head // shared].to(dtype).contiguous() for x in (k, v))
            queries, found = (x[row, head, rows].unflatten(0, (len(blocks), -1)) for x in (q, mixed))
            shift = False
            for begin in range(0, len(blocks), BLOCKS):
                group = slice(begin, min(begin + BLOCKS, len(blocks)))
                own = _Gathered.of(
                    inner.starts[row, head, group],
                    inner.counts[row, head, group],
                    first=place + rows.start + begin * choice.block_q,
                    keys=k.shape[2],
                    sizes=(choice.block_q, choice.block_k, reach),
                )
                shift = workspace.attend(queries[group], keys, values, own, shift, found[group])


def _columns(choice: BlockChoice, reach: Reach) -> int:
    return choice.starts.shape[-1] * choice.block_k + reach.sinks + reach.window + choice.block_q - 1


@dataclass(frozen=True)
class _Gathered:
    """For some blocks of queries the keys to gather, and which sinks and keys of the window are among them twice.

    Args:
        places: where the keys stand: the choice, then the sinks.
        seen: whether a chosen key counts there: it holds, and is not in the window of every query.
        doubles: whether a sink, or a key that is in the window of some queries alone, was chosen.
        windows: position of the first key of each block's window.
    """

    places: Int[Tensor, "blocks gathered"]
    seen: Bool[Tensor, "blocks chosen"]
    doubles: Bool[Tensor, "blocks partly"]
    windows: range

    @classmethod
    def of(cls, starts: Tensor, counts: Tensor, *, first: int, keys: int, sizes: tuple[int, int, Reach]) -> _Gathered:
        """Those of a choice for one head; `first` is the position of the first query."""
        block_q, block_k, reach = sizes
        blocks, partly, begin = len(starts), block_q - 1, first - reach.window + 1
        windows = range(begin, begin + blocks * block_q, block_q)
        hold = torch.arange(starts.shape[-1]) < counts[:, None]
        chosen = (torch.where(hold, starts, keys)[..., None] + torch.arange(block_k)).flatten(1)
        # in the partly seen beginning of the window from 1 on; the places at its ends take what lies before and behind
        inside = chosen - torch.arange(begin - 1, begin - 1 + blocks * block_q, block_q)[:, None]
        doubles = torch.zeros(blocks, reach.sinks + 1 + partly + 2, dtype=torch.bool)
        sinks, near = doubles.split((reach.sinks + 1, partly + 2), dim=-1)
        sinks.scatter_(-1, chosen.clamp(max=reach.sinks), True)
        near.scatter_(-1, inside.clamp(0, partly + 1), True)
        everywhere = torch.arange(reach.sinks).expand(blocks, -1)
        return cls(
            places=torch.cat((chosen.clamp_(max=keys - 1), everywhere), dim=-1),
            seen=inside <= partly,
            doubles=torch.cat((sinks[:, :-1], near[:, 1:-1]), dim=-1),
            windows=windows,
        )

    def of_blocks(self, some: slice) -> _Gathered:
        """Those of some of the blocks."""
        return _Gathered(self.places[some], self.seen[some], self.doubles[some], self.windows[some])


def _is_safe(total: Tensor) -> bool:
    least, most = total.aminmax()
    return SMALLEST_SUM < float(least) <= float(most) < LARGEST_SUM


class _Workspace:
    """Memory for the scores and the gathered keys and values of a few blocks, used again and again."""

    def __init__(self, like: Tensor, choice: BlockChoice, reach: Reach, *, widths: tuple[int, int]) -> None:
        block_q, self._sinks = choice.block_q, reach.sinks
        columns, self._window = _columns(choice, reach), reach.window + block_q - 1
        one = columns * block_q * like.element_size()
        self.at_once = min(choice.starts.shape[2], max(1, SCORES_BYTES // one))
        gathered = columns - self._window
        self._scores = like.new_empty(self.at_once, columns, block_q)
        self._queries = like.new_empty(self.at_once, block_q, widths[0])
        self._scale = widths[0] ** -0.5 / math.log(2)
        self._memory = like.new_empty(self.at_once * gathered * max(widths))
        everything = torch.ones(block_q - 1, block_q, dtype=torch.bool)
        self._past, self._future = everything.triu(1), everything.tril()

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, own: _Gathered, shift: bool, found: Tensor) -> bool:
        """Attention of some blocks, written to `found`; whether the scores had to be shifted, as asked or by need."""
        for begin in range(0, len(queries), self.at_once):
            some = slice(begin, begin + self.at_once)
            shift = self._attend_at_once(queries[some], keys, values, own.of_blocks(some), shift, found[some])
        return shift

    def _attend_at_once(
        self, queries: Tensor, keys: Tensor, values: Tensor, own: _Gathered, shift: bool, found: Tensor
    ) -> bool:
        weights, total = self._weights(queries, keys, own, shift)
        if not shift and not _is_safe(total):
            shift = True
            weights, total = self._weights(queries, keys, own, shift)
        (far, near), (far_values, near_values) = self._halves(weights, own), self._kept(values, own)
        mixed = torch.bmm(far.transpose(1, 2), far_values)
        torch.baddbmm(mixed, near.transpose(1, 2), near_values, out=mixed)
        found.copy_(mixed.div_(total[..., None]))
        return shift

    def _weights(self, queries: Tensor, keys: Tensor, own: _Gathered, shift: bool) -> tuple[Tensor, Tensor]:
        """Unnormalised weights, in the workspace, and their sums."""
        scores, scaled = self._scores[: len(queries)], self._queries[: len(queries)]
        across = torch.mul(queries, self._scale, out=scaled).transpose(1, 2)
        for kept, part in zip(self._kept(keys, own), self._halves(scores, own), strict=True):
            torch.bmm(kept, across, out=part)
        self._mask(scores, own)
        if shift:
            scores.sub_(scores.amax(dim=1, keepdim=True))
        return scores, scores.exp2_().sum(dim=1)

    def _halves(self, scores: Tensor, own: _Gathered) -> tuple[Tensor, Tensor]:
        return scores[:, : own.places.shape[1]], scores[:, own.places.shape[1] :]

    def _kept(self, x: Tensor, own: _Gathered) -> tuple[Tensor, Tensor]:
        """Gathered rows of keys or values, until the next call, and those of the windows."""
        rows = own.places.flatten()
        memory = self._memory[: len(rows) * x.shape[1]].view(len(rows), x.shape[1])
        return torch.index_select(x, 0, rows, out=memory).view(*own.places.shape, -1), self._windows(x, own.windows)

    def _windows(self, x: Tensor, first: range) -> Float[Tensor, "blocks window width"]:
        """The rows of the windows, where they are: one window's rows are the next one's too."""
        step, width = x.stride(0), x.shape[1]
        size, strides = (len(first), self._window, width), (first.step * step, step, 1)
        return x.as_strided(size, strides, x.storage_offset() + first.start * step)

    def _mask(self, scores: Tensor, own: _Gathered) -> None:
        partly, chosen = self._past.shape[0], own.seen.shape[-1]
        if not bool(own.seen.all()):
            scores[:, :chosen].masked_fill_(~own.seen[..., None], -torch.inf)
        doubles = scores[:, chosen : chosen + self._sinks + partly]
        doubles.masked_fill_(own.doubles[..., None], -torch.inf)
        doubles[:, self._sinks :].masked_fill_(self._past, -torch.inf)
        scores[:, -partly:].masked_fill_(self._future, -torch.inf)
