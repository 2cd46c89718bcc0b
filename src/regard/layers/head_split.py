"""How the Routing Transformer divides the heads of a layer between local attention and routing.

Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al., TACL 2021,
https://arxiv.org/abs/2003.05997, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from regard.ops.heads import head_width
from regard.ops.routing_form import Mode


@dataclass(frozen=True)
class HeadSplit:
    """How the heads of a layer are divided, after the defaults are filled in.

    Args:
        local: heads that look at blocks.
        routed: heads that look at clusters.
        head_dim: their width.
        shared_qk: keys of routing heads are their queries.
        slots: learned keys and values in every cluster.
    """

    local: int
    routed: int
    head_dim: int
    shared_qk: bool
    slots: int


def split_of(
    dim: int,
    *,
    num_heads: int,
    local_heads: int | None,
    head_dim: int | None,
    causal: bool,
    shared_qk: bool | None,
    num_memory: int,
    mode: Mode,
) -> HeadSplit:
    """Fill in the defaults; arguments as for `regard.mixers.sequence.routing.RoutingAttention`.

    Raises:
        ValueError: more local heads than heads, a width that is not positive, or a negative number of slots.
    """
    local = num_heads // 2 if local_heads is None else local_heads
    if not 0 <= local <= num_heads:
        raise ValueError(f"local_heads must be between 0 and num_heads={num_heads}, got {local_heads}")
    if head_dim is not None and head_dim < 1:
        raise ValueError(f"head_dim must be positive, got {head_dim}")
    if num_memory < 0:
        raise ValueError(f"num_memory must not be negative, got {num_memory}")
    shared = causal if shared_qk is None else shared_qk
    needed = 1 if mode == "compat" and causal and not shared else 0
    width = head_width(dim, num_heads) if head_dim is None else head_dim
    return HeadSplit(local, num_heads - local, width, shared, max(num_memory, needed))
