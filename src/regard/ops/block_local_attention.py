"""Local attention in blocks: a token attends to its own block and to the blocks beside it.

Causal: the own block up to the token itself, and `look_back` whole blocks before. Otherwise the own block and
`look_back` blocks on either side. So a token sees more or less of the past with its place in its block, unlike in a
sliding window.
Papers: "Image Transformer", Parmar et al., ICML 2018, https://arxiv.org/abs/1802.05751, section 3.2 (in one
dimension); as the local heads of "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al.,
TACL 2021, https://arxiv.org/abs/2003.05997, section 3. Compared with lucidrains/local-attention 1.4.3
(`LocalAttention`). Different from the code: any length, without padding to whole blocks.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.precision import without_autocast
from regard.ops.softmax_attention import softmax_attention

HeadsOf = Float[Tensor, "batch heads tokens width"]
Mask = Bool[Tensor, "batch tokens"]


def check_blocks(block_size: int, look_back: int) -> None:
    """Refuse blocks that cannot be made.

    Raises:
        ValueError: an empty block, or a negative number of blocks beside it.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be positive, got {block_size}")
    if look_back < 0:
        raise ValueError(f"look_back must not be negative, got {look_back}")


def near_blocks(
    queries: Int[Tensor, "*batch queries"],
    keys: Int[Tensor, "*batch keys"],
    *,
    block_size: int,
    look_back: int,
    causal: bool,
) -> Bool[Tensor, "*batch queries keys"]:
    """Which keys each query sees, by their positions; keys before position 0 are seen by none."""
    own, other = queries[..., :, None] // block_size, keys[..., None, :] // block_size
    seen = (other >= own - look_back) & (keys >= 0)[..., None, :]
    if causal:
        return seen & (keys[..., None, :] <= queries[..., :, None])
    return seen & (other <= own + look_back)


@without_autocast
def block_local_attention(
    q: HeadsOf,
    k: HeadsOf,
    v: HeadsOf,
    *,
    block_size: int,
    look_back: int = 1,
    causal: bool,
    mask: Mask | None = None,
    dropout: float = 0.0,
) -> HeadsOf:
    """Attention in blocks, which are rows of one batch: time and memory are linear.

    Args:
        q: queries.
        k: keys, as many.
        v: values.
        block_size: tokens in a block; the last one may be shorter.
        look_back: blocks before the own one; without causality also after it.
        causal: hide later tokens.
        mask: True = real key. The result is undefined, but finite, in rows that see nothing.
        dropout: probability of dropping a weight.

    Raises:
        ValueError: as `check_blocks`.
    """
    check_blocks(block_size, look_back)
    batch, heads, tokens, _ = q.shape
    size, number, before, after = _layout(tokens, block_size, look_back, causal)
    if number == 1 and mask is None:
        return softmax_attention(q, k, v, causal=causal, dropout=dropout)
    missing = number * size - tokens
    span = before + size + after

    def windows(x: HeadsOf) -> Float[Tensor, "rows heads span width"]:
        filled = pad(x.transpose(1, 2), (0, 0, 0, 0, before, missing + after))
        return filled.unfold(1, span, size).transpose(3, 4).flatten(0, 1)

    places = torch.arange(number * size, device=q.device).view(number, size)
    columns = places[:, :1] - before + torch.arange(span, device=q.device)
    visible = near_blocks(places, columns, block_size=size, look_back=look_back, causal=causal)
    visible = (visible & (columns < tokens)[:, None]).expand(batch, -1, -1, -1)
    if mask is not None:
        visible = visible & pad(mask, (before, missing + after)).unfold(1, span, size)[:, :, None]
    own = pad(q.transpose(1, 2), (0, 0, 0, 0, 0, missing)).reshape(batch * number, size, heads, -1).transpose(1, 2)
    mixed = softmax_attention(own, windows(k), windows(v), visible=visible.flatten(0, 1)[:, None], dropout=dropout)
    return mixed.transpose(1, 2).reshape(batch, number * size, heads, -1)[:, :tokens].transpose(1, 2)


def _layout(tokens: int, block_size: int, look_back: int, causal: bool) -> tuple[int, int, int, int]:
    """Size and number of the blocks, and how many keys before and after its own a block is given."""
    size = min(tokens, block_size)
    number = -(-tokens // size)
    before = min(look_back, number - 1) * size
    return size, number, before, 0 if causal else before


def block_local_macs(
    *, tokens: int, block_size: int, look_back: int, causal: bool, head_dim: int, value_dim: int
) -> int:
    """Contraction MACs of `block_local_attention` for one row and one head."""
    size, number, before, after = _layout(tokens, block_size, look_back, causal)
    return number * size * (before + size + after) * (head_dim + value_dim)
