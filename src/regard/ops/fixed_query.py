"""Scores of keys against a query that does not depend on the input: the keys need not be projected.

    s_i = (W_q q + b_q) . (W_k x_i + b_k) / sqrt(d) = x_i . f + c,  f = W_k^T (W_q q + b_q) / sqrt(d),

per head, so one product of width `heads` takes the place of the projection to `dim`, for values and gradients alike.
The bias b_k only adds the number c to all scores of a head, which softmax does not see.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast


@without_autocast
def fold_query(
    query: Float[Tensor, " dim"],
    q_weight: Float[Tensor, "width dim"],
    q_bias: Float[Tensor, " width"] | None,
    k_weight: Float[Tensor, "width dim"],
    k_bias: Float[Tensor, " width"] | None,
    *,
    num_heads: int,
) -> tuple[Float[Tensor, "heads dim"], Float[Tensor, " heads"] | None]:
    """F and c of every head, in at least float32; c is None without a key bias.

    Args:
        query: the query token.
        q_weight: W_q.
        q_bias: b_q.
        k_weight: W_k.
        k_bias: b_k.
        num_heads: number of heads; must divide `width`.
    """
    dtype = compute_dtype(query)
    head_dim = q_weight.shape[0] // num_heads
    bias = None if q_bias is None else q_bias.to(dtype)
    q = torch.nn.functional.linear(query[None].to(dtype), q_weight.to(dtype), bias)
    q = (q * head_dim**-0.5).view(num_heads, 1, head_dim)
    folded = torch.bmm(q, k_weight.to(dtype).view(num_heads, head_dim, -1)).squeeze(1)
    if k_bias is None:
        return folded, None
    return folded, (q.squeeze(1) * k_bias.to(dtype).view(num_heads, head_dim)).sum(dim=-1)


@without_autocast
def project_wide(
    x: Float[Tensor, "batch tokens dim"], weight: Float[Tensor, "width dim"], bias: Float[Tensor, " width"] | None
) -> Float[Tensor, "batch tokens width"]:
    """A projection in the weight's precision, also where `x` is narrower: of `x` to scores, with f and c."""
    return torch.nn.functional.linear(x.to(weight.dtype), weight, bias)


def fold_query_macs(dim: int) -> int:
    """Contraction MACs of `fold_query`, once per call and not per token: W_q q and W_k^T q."""
    return 2 * dim**2
