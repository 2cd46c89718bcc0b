"""Retrieving blocks of keys in a model that was trained without landmarks: what a query sees, and where it places it.

After "Landmark Attention" (Mohtashami and Jaggi, NeurIPS 2023, https://arxiv.org/abs/2305.16300, section 3.3), whose
memory and positions these are; ours is what stands for a block where no trained landmark does. A query sees its own
block up to itself, the `recent` blocks before it, the first `sinks` blocks, and the best `top_k` of those between. A
block is worth the mean of its keys' scores, and one softmax runs over all that is seen: a landmark whose gate is the
block's own share. While the blocks before a query's are no more than `seen_blocks`, this is full attention.

Positions are stingy: what is seen is moved together, so that no query is further along than `seen_blocks` blocks and
its place in its own, however long the text. Blocks to choose from are all scored at one place, the first chosen one's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.precision import compute_dtype
from regard.ops.rotary import rotate


@dataclass(frozen=True, kw_only=True)
class BlockRetrieval:
    """What a query sees beside its own block, counted in blocks.

    Args:
        block_size: tokens in a block.
        top_k: blocks that each query and head chooses.
        recent: blocks before the query's own that it always sees.
        sinks: first blocks of the text that it always sees.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: a number out of its range.
    """

    block_size: int = 64
    top_k: int = 4
    recent: int = 3
    sinks: int = 1
    rope_base: float | None = None

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1 token, got {self.block_size}")
        for name in ("top_k", "recent", "sinks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0 blocks, got {getattr(self, name)}")

    @property
    def seen_blocks(self) -> int:
        """Blocks that a query sees at most beside its own."""
        return self.sinks + self.top_k + self.recent


@dataclass(frozen=True)
class Asking:
    """Queries that ask, with their positions in the text.

    Args:
        q: queries, not turned, in at least float32 and divided by sqrt(head_dim).
        block: the block that each stands in.
        inside: its place there.
        sizes: what they see.
    """

    q: Float[Tensor, "batch heads tokens head_dim"]
    block: Int[Tensor, "batch tokens"]
    inside: Int[Tensor, "batch tokens"]
    sizes: BlockRetrieval

    @property
    def place(self) -> Int[Tensor, "batch tokens"]:
        """Where the queries' block stands among the blocks that they see."""
        return self.block.clamp(max=self.sizes.seen_blocks)

    @property
    def choosable(self) -> Int[Tensor, "batch tokens"]:
        """The blocks before this one, from `sinks` on, are chosen from."""
        return self.block - self.sizes.recent

    def turned(self, blocks: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Queries as keys see them that stand so many blocks before theirs, and are turned by their place inside."""
        return turn(self.q, blocks * self.sizes.block_size + self.inside, self.sizes.rope_base)

    def turned_to(
        self, chosen: Int[Tensor, "batch heads tokens chosen"]
    ) -> Float[Tensor, "batch heads tokens chosen head_dim"]:
        """Queries as the chosen blocks see them, the first of which is placed behind the sinks."""
        many = chosen.shape[3]
        # as many for every head: how many there are is a matter of positions
        missing = (chosen[:, 0] < 0).sum(dim=-1, keepdim=True)
        places = self.sizes.sinks + torch.arange(many, device=chosen.device) - missing
        offsets = (self.place[..., None] - places) * self.sizes.block_size + self.inside[..., None]
        each = self.q[:, :, :, None].expand(-1, -1, -1, many, -1).flatten(2, 3)
        return turn(each, offsets.flatten(1), self.sizes.rope_base).unflatten(2, (-1, many))


def asking(
    q: Float[Tensor, "batch heads tokens head_dim"], positions: Int[Tensor, "batch tokens"], sizes: BlockRetrieval
) -> Asking:
    """Queries at these positions of the text."""
    scaled = q.to(compute_dtype(q)) * q.shape[-1] ** -0.5
    return Asking(scaled, positions // sizes.block_size, positions % sizes.block_size, sizes)


def turn(x: Tensor, positions: Int[Tensor, "#batch tokens"], base: float | None) -> Tensor:
    """Turned by a rotary embedding; None = there is none."""
    return x if base is None else rotate(x, positions, base=base)


@torch.no_grad()
def choose(
    queries: Asking, means: Float[Tensor, "batch kv_heads blocks head_dim"]
) -> Int[Tensor, "batch heads tokens chosen"]:
    """The best blocks for every query and head, in time; -1, at the left, where there are fewer.

    Args:
        queries: who asks.
        means: of the keys of all blocks, turned by their places inside them.
    """
    sizes, blocks = queries.sizes, means.shape[2]
    turned = queries.turned(queries.place - sizes.sinks)
    scores = shared_product(turned, means[:, :, sizes.sinks :])
    numbers = torch.arange(sizes.sinks, blocks, device=scores.device)
    scores = scores.masked_fill((numbers >= queries.choosable[..., None])[:, None], -torch.inf)
    best, order = scores.topk(min(sizes.top_k, scores.shape[3]), dim=-1)
    return torch.where(best == -torch.inf, -1, order + sizes.sinks).sort(dim=-1).values


def chosen_logits(
    turned: Float[Tensor, "batch heads tokens chosen head_dim"],
    keys: Float[Tensor, "batch heads tokens chosen block_size head_dim"],
    chosen: Int[Tensor, "batch heads tokens chosen"],
) -> Float[Tensor, "batch heads tokens keys"]:
    """Scores of the chosen blocks' keys.

    Args:
        turned: the queries as `Asking.turned_to` hands them out.
        keys: of the blocks, turned by their places inside them.
        chosen: numbers of the blocks; -1 = none.
    """
    scores = torch.einsum("bhtcd,bhtcjd->bhtcj", turned, keys.to(turned.dtype))
    return scores.masked_fill((chosen < 0)[..., None], -torch.inf).flatten(3)


def block_logits(
    queries: Asking,
    keys: Float[Tensor, "batch kv_heads blocks block_size head_dim"],
    *,
    offsets: Int[Tensor, "batch tokens"],
    visible: Bool[Tensor, "batch tokens keys"],
) -> Float[Tensor, "batch heads tokens keys"]:
    """Scores of blocks that follow each other, for queries that all read them.

    Args:
        queries: who asks.
        keys: of the blocks, turned by their places inside them.
        offsets: blocks from the first of these to the query's own.
        visible: which of the keys each query sees.
    """
    blocks, size = keys.shape[2:4]
    starts = (size * torch.arange(blocks, device=keys.device)).repeat_interleave(size)
    placed = turn(keys.to(queries.q.dtype).flatten(2, 3), starts[None], queries.sizes.rope_base)
    return shared_product(queries.turned(offsets), placed).masked_fill(~visible[:, None], -torch.inf)


def shared_product(
    rows: Float[Tensor, "batch heads tokens width"], columns: Float[Tensor, "batch kv_heads keys width"]
) -> Float[Tensor, "batch heads tokens keys"]:
    """Products with keys that query heads share, none of which is repeated."""
    kv_heads, tokens = columns.shape[1], rows.shape[2]
    folded = rows.unflatten(1, (kv_heads, -1)).flatten(2, 3) @ columns.to(rows.dtype).mT
    return folded.unflatten(2, (-1, tokens)).flatten(1, 2)
