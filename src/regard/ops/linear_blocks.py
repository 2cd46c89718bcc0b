"""Causal linear attention block by block: quadratic inside a block, a recurrent state between blocks.

Paper: "Lightning Attention-2", Qin et al., 2024, https://arxiv.org/abs/2401.04658, algorithm 1. With row r = 0..m-1 of
a block of m tokens, decay factor c = exp(-slope) and state S,

    O_r = sum_{r' <= r} c^(r - r') (q_r . k_r') v_r' + c^(r + 1) q_r S,
    S <- c^m S + sum_r c^(m - 1 - r) k_r^T v_r,

so every factor is at most 1 and a short last block leaves the state of its own length. The blocks are walked one
after the other, because what belongs to one then stays in the cache: twice as fast on a CPU as all blocks at once.
Memory is linear in the number of tokens, also with gradients (the scores of each block are kept for them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BLOCK = 64
"""Tokens in a block, best on a CPU in float32 for heads 64 wide (measured: 22 ms, against 28 with 128)."""
BLOCK_BFLOAT16 = 128
"""The same in bfloat16, where products are cheaper and everything around them is not."""


def default_block(dtype: torch.dtype) -> int:
    """Tokens in a block, by measurement, for tiles of this type."""
    return BLOCK_BFLOAT16 if dtype == torch.bfloat16 else BLOCK


@dataclass(frozen=True)
class Padding:
    """What right-padding does to the state: only the first `lengths[b]` tokens of row b pass.

    Args:
        lengths: number of real tokens in each row.
    """

    lengths: Int[Tensor, " batch"]

    def real(self, start: int, rows: int) -> Int[Tensor, "batch 1 1 1"]:
        """How many of the `rows` tokens from `start` on are real."""
        return (self.lengths - start).clamp(0, rows)[:, None, None, None]


class Decay:
    """Powers of each head's decay factor, for blocks of any size.

    Args:
        slopes: one per head, at least 0; None = no decay.
        dtype: of the tiles; powers are computed in at least float32 and rounded once.
        device: where the tiles are.
    """

    def __init__(self, slopes: Sequence[float] | None, *, dtype: torch.dtype, device: torch.device) -> None:
        self._tile_dtype = dtype
        self._device = device
        self._dtype = torch.promote_types(dtype, torch.float32)
        self._slopes: Tensor | None = None
        if slopes is not None:
            self._slopes = torch.tensor(tuple(slopes), dtype=self._dtype, device=device)[:, None, None]
        self._of_rows: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def _powers(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if rows not in self._of_rows:
            assert self._slopes is not None
            row = torch.arange(rows, device=self._device, dtype=self._dtype)
            distance = row[:, None] - row
            within = torch.exp(-self._slopes * distance.clamp(min=0)) * (distance >= 0)
            from_state = torch.exp(-self._slopes * (row[:, None] + 1))
            to_state = torch.exp(-self._slopes * (rows - 1 - row[:, None]))
            across = torch.exp(-self._slopes * rows)
            narrow = self._tile_dtype
            self._of_rows[rows] = within.to(narrow), from_state.to(narrow), to_state.to(narrow), across
        return self._of_rows[rows]

    def weigh_scores(self, scores: Float[Tensor, "batch heads rows rows"], *, diagonal: bool) -> Tensor:
        """Scores inside a block, decayed, with the future (and without `diagonal` the present) set to 0; in place."""
        if self._slopes is not None:
            scores = scores.mul_(self._powers(scores.shape[-1])[0])
            return scores if diagonal else scores.tril_(-1)
        return scores.tril_(0 if diagonal else -1)

    def weigh_queries(self, q: Float[Tensor, "batch heads rows head_dim"]) -> Tensor:
        """Queries as they see the state before the block."""
        return q if self._slopes is None else q * self._powers(q.shape[2])[1]

    def weigh_keys(self, k: Float[Tensor, "batch heads rows head_dim"], real: Tensor | None) -> Tensor:
        """Keys as they enter the state after the block, of whose tokens the first `real` pass."""
        rows = k.shape[2]
        if real is None:
            return k if self._slopes is None else k * self._powers(rows)[2]
        row = torch.arange(rows, device=self._device)[:, None]
        if self._slopes is None:
            return k * (row < real)
        age = (real - 1 - row).clamp(min=0).to(self._dtype)
        return k * (torch.exp(-self._slopes * age) * (row < real)).to(self._tile_dtype)

    def weigh_state(
        self, state: Float[Tensor, "batch heads head_dim value_dim"], rows: int, real: Tensor | None
    ) -> Tensor:
        """The state before a block, as much older as the block has real tokens."""
        if self._slopes is None:
            return state
        if real is None:
            return state * self._powers(rows)[3]
        return state * torch.exp(-self._slopes * real.to(self._dtype))


class _Runs:
    """Packed sequences: what a block may see of itself and of the state, which belongs to one run at a time."""

    def __init__(self, runs: Int[Tensor, "batch rows"], carried: Int[Tensor, " batch"]) -> None:
        self._runs, self._carried = runs, carried
        self.last = runs[:, -1]

    def mask_scores(self, scores: Tensor) -> Tensor:
        return scores * (self._runs[:, :, None] == self._runs[:, None, :])[:, None]

    def mask_queries(self, q: Tensor) -> Tensor:
        return q * (self._runs == self._carried[:, None])[:, None, :, None]

    def mask_keys(self, k: Tensor) -> Tensor:
        return k * (self._runs == self.last[:, None])[:, None, :, None]

    def mask_state(self, state: Tensor) -> Tensor:
        return state * (self.last == self._carried)[:, None, None, None]


def scan_blocks(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch heads tokens head_dim"],
    v: Float[Tensor, "batch heads tokens value_dim"],
    *,
    slopes: Sequence[float] | None,
    block_size: int,
    diagonal: bool = True,
    runs: Int[Tensor, "batch tokens"] | None = None,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    initial_state: Float[Tensor, "batch heads head_dim value_dim"] | None = None,
    want_state: bool = False,
) -> tuple[list[Float[Tensor, "batch heads rows value_dim"]], Float[Tensor, "batch heads head_dim value_dim"] | None]:
    """The sums of each block, and the state after the last where it is wanted.

    Products of bfloat16 tiles stay in bfloat16 (accumulated in float32 by the kernel); the state is kept in at least
    float32. Runs that never see each other and padding cost something only where they are given.

    Args:
        q: queries.
        k: keys.
        v: values.
        slopes: decay per head; None = none.
        block_size: tokens in a block.
        diagonal: whether a token sees itself.
        runs: numbers of packed sequences; the state belongs to the run of the last token, `initial_state` to the
            first token's.
        mask: True on the prefix of each row that enters the state.
        initial_state: the state before the first token.
        want_state: whether to return the state after the last token.
    """
    decay = Decay(slopes, dtype=q.dtype, device=q.device)
    padding = None if mask is None else Padding(mask.sum(dim=1))
    blocks = [x.split(block_size, dim=2) for x in (q, k, v)]
    carried = None if runs is None else runs[:, 0]
    state, sums, start = initial_state, [], 0
    for queries, keys, values in zip(*blocks, strict=True):
        rows = queries.shape[2]
        stop = start + rows
        here = None if runs is None or carried is None else _Runs(runs[:, start:stop], carried)
        scores = decay.weigh_scores(queries @ keys.transpose(2, 3), diagonal=diagonal)
        if here is not None:
            scores = here.mask_scores(scores)
        sums.append(_read(scores, values, queries, state, decay, here))
        if want_state or stop < q.shape[2]:
            real = None if padding is None else padding.real(start, rows)
            state = _write(state, keys, values, real, decay, here)
        carried = None if here is None else here.last
        start = stop
    return sums, state if want_state else None


def _read(
    scores: Tensor, values: Tensor, queries: Tensor, state: Tensor | None, decay: Decay, here: _Runs | None
) -> Tensor:
    """What the block's queries get from the block's values and from the state."""
    if state is None:
        return scores @ values
    queries = decay.weigh_queries(queries)
    if here is not None:
        queries = here.mask_queries(queries)
    from_state = queries @ state.to(queries.dtype)
    return _add_product(from_state, scores, values)


def _write(
    state: Tensor | None, keys: Tensor, values: Tensor, real: Tensor | None, decay: Decay, here: _Runs | None
) -> Tensor:
    """The state after the block."""
    rows = keys.shape[2]
    keys = decay.weigh_keys(keys, real)
    if here is not None:
        keys = here.mask_keys(keys)
    dtype = torch.promote_types(keys.dtype, torch.float32)
    if state is None:
        return (keys.transpose(2, 3) @ values).to(dtype)
    state = decay.weigh_state(state, rows, real)
    if here is not None:
        state = here.mask_state(state)
    if keys.dtype == state.dtype:
        return _add_product(state, keys.transpose(2, 3), values)
    return state + keys.transpose(2, 3) @ values


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`total + a @ b` in one call, for tensors with a batch and a head axis."""
    flat = [x.flatten(0, 1) for x in (total, a, b)]
    return torch.baddbmm(*flat).view(total.shape)


def scan_macs(
    tokens: int, *, head_dim: int, value_dim: int, block_size: int, from_state: bool = False, want_state: bool = False
) -> int:
    """Contraction MACs of `scan_blocks` for one row and one head."""
    macs = 0
    for start in range(0, tokens, block_size):
        rows = min(block_size, tokens - start)
        macs += rows * rows * (head_dim + value_dim)
        reads = from_state or start > 0
        writes = want_state or start + rows < tokens
        macs += (reads + writes) * rows * head_dim * value_dim
    return macs
