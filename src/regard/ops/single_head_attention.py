"""Softmax attention of one narrow head over few positions: two products of matrices, without the fused kernel.

Paper: "Attention Is All You Need", Vaswani et al., NeurIPS 2017, https://arxiv.org/abs/1706.03762, equation 1.
Networks that give a head 16 channels for queries and keys and more for values, over at most a few hundred positions,
gain nothing from fused kernels, which want all widths equal: the plain products are faster.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from regard.ops.precision import without_autocast
from regard.ops.softmax_attention import softmax_attention

FEW = 256
"""Positions up to which all weights are written to memory."""
Queries = Float[Tensor, "rows positions head_dim"]
Bias = Float[Tensor, "positions positions"]


@without_autocast
def single_head_weights(
    q: Queries, k: Queries, *, bias: Bias | None = None
) -> Float[Tensor, "rows positions positions"]:
    """softmax(q k^T / sqrt(d) + bias), in the type of `q`.

    Args:
        q: queries.
        k: keys.
        bias: added to the scores of every row.
    """
    scale = q.shape[-1] ** -0.5
    if bias is None:
        return ((q * scale) @ k.mT).softmax(dim=-1)
    # one pass over the scores instead of three: the product is scaled and added to a copy of the bias
    return torch.baddbmm(bias.to(q.dtype), q, k.mT, alpha=scale).softmax(dim=-1)


@without_autocast
def single_head_attention(
    q: Queries, k: Queries, v: Float[Tensor, "rows positions value_dim"], *, bias: Bias | None = None
) -> Float[Tensor, "rows positions value_dim"]:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the scores of every row.
    """
    if q.shape[1] <= FEW:
        return single_head_weights(q, k, bias=bias) @ v
    wide = None if bias is None else bias[None, None]
    return softmax_attention(q[:, None], k[:, None], v[:, None], bias=wide)[:, 0]
