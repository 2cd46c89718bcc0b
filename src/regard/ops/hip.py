"""HiP attention: a search for the keys that matter to each block of queries, then attention to those alone.

Paper: "HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning", Lee et al., 2024,
https://arxiv.org/abs/2406.09827. The search is `regard.ops.hip_search`, the attention `regard.ops.block_sparse`.
Rows whose keys all fit in the budget and the window are full causal attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.block_sparse import (
    BlockChoice,
    Reach,
    block_sparse_attention,
    block_sparse_macs,
    block_sparse_visible,
)
from regard.ops.hip_search import Sample, check_search, search_key_blocks, search_macs
from regard.ops.latest_attention import latest_attention
from regard.ops.visibility import visible_keys

Queries = Float[Tensor, "batch heads queries head_dim"]
Keys = Float[Tensor, "batch kv_heads keys head_dim"]
Values = Float[Tensor, "batch kv_heads keys value_dim"]


@dataclass(frozen=True, kw_only=True)
class HiPSizes:
    """How much each query sees, and how it is looked for.

    Args:
        mask_k: keys to choose for each block of queries; a multiple of `block_k`.
        block_q: queries in a block, which share a choice.
        block_k: keys in a block, which are chosen together.
        window: latest keys that are always seen, the query's own the last; at least `block_k`.
        sinks: first keys that are always seen.
        sample: which block stands for a range of keys: its first, or the one at its centre.

    Raises:
        ValueError: sizes that do not fit.
    """

    mask_k: int = 512
    block_q: int = 64
    block_k: int = 2
    window: int = 256
    sinks: int = 16
    sample: Sample = "first"

    def __post_init__(self) -> None:
        check_search(
            mask_k=self.mask_k, block_q=self.block_q, block_k=self.block_k, window=self.window, sample=self.sample
        )
        Reach(self.window, self.sinks)

    def is_full(self, keys: int) -> bool:
        """Whether every query sees all of up to `keys` keys."""
        return keys <= self.mask_k + self.window

    def for_single_queries(self, refresh: int) -> HiPSizes:
        """The sizes of a search for one query whose choice serves `refresh` tokens, its own the first.

        It looks so far into the window that no key lies between what it searched and the last of these windows.

        Raises:
            ValueError: a window that has no room for that.
        """
        if not 1 <= refresh <= self.window - self.block_k + 1:
            raise ValueError(
                f"refresh must be between 1 and window - block_k + 1 = {self.window - self.block_k + 1}, got {refresh}"
            )
        return replace(self, block_q=1, window=self.window - refresh + 1)

    def reach(self, keys: int) -> Reach:
        """Window and sinks, cut to the keys that there are."""
        return Reach(min(self.window, keys), min(self.sinks, keys))


def hip_choice(
    q: Queries,
    k: Keys,
    sizes: HiPSizes,
    *,
    first: int | Int[Tensor, " batch"],
    lengths: Int[Tensor, " batch"] | None = None,
) -> BlockChoice:
    """The keys to attend to. Arguments as for `search_key_blocks`."""
    return search_key_blocks(
        q,
        k,
        first=first,
        lengths=lengths,
        mask_k=sizes.mask_k,
        block_q=sizes.block_q,
        block_k=sizes.block_k,
        window=sizes.window,
        sample=sizes.sample,
    )


def hip_attention(
    q: Queries,
    k: Keys,
    v: Values,
    sizes: HiPSizes,
    *,
    first: int | Int[Tensor, " batch"] = 0,
    lengths: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Causal attention to the keys that the search finds, beside a window and sinks.

    Gradients flow through the attention alone, none through the search.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries' (grouped-query attention).
        v: values.
        sizes: how much is seen.
        first: position of the first query among the keys, for all rows or for each.
        lengths: number of real keys of every row, which lie at its front; None = all that causality shows.
    """
    keys = k.shape[2]
    if isinstance(first, int) and sizes.is_full(first + q.shape[2]):
        end = first + q.shape[2]
        return latest_attention(q, k[:, :, :end].to(q.dtype), v[:, :, :end].to(q.dtype))
    choice = hip_choice(q, k, sizes, first=first, lengths=lengths)
    places = torch.as_tensor(first, device=q.device).expand(q.shape[0])
    return block_sparse_attention(q, k, v, choice, sizes.reach(keys), first=places)


def hip_visible(
    q: Queries,
    k: Keys,
    sizes: HiPSizes,
    *,
    lengths: Int[Tensor, " batch"] | None = None,
) -> Bool[Tensor, "batch heads queries keys"]:
    """The whole map of keys that the queries see, as many as keys. Quadratic."""
    batch, heads, queries, _ = q.shape
    if sizes.is_full(queries):
        whole = visible_keys(queries, queries, causal=True, device=q.device)
        assert whole is not None
        return whole.expand(batch, heads, -1, -1)
    choice = hip_choice(q, k, sizes, first=0, lengths=lengths)
    places = torch.zeros(batch, dtype=torch.int64, device=q.device)
    return block_sparse_visible(choice, sizes.reach(queries), first=places, queries=queries, keys=queries)


def hip_macs(sizes: HiPSizes, *, tokens: int, head_dim: int, value_dim: int) -> int:
    """Contraction MACs of `hip_attention` on one head and `tokens` queries and keys."""
    if sizes.is_full(tokens):
        return tokens * tokens * (head_dim + value_dim)
    search = search_macs(
        first=0,
        queries=tokens,
        mask_k=sizes.mask_k,
        block_q=sizes.block_q,
        block_k=sizes.block_k,
        window=sizes.window,
        sample=sizes.sample,
        head_dim=head_dim,
    )
    attention = block_sparse_macs(
        blocks=-(-tokens // sizes.block_q),
        block_q=sizes.block_q,
        chosen=sizes.mask_k,
        reach=sizes.reach(tokens),
        head_dim=head_dim,
        value_dim=value_dim,
    )
    return search + attention
