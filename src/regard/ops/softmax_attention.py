"""Softmax attention: the plain reference, and the fast path through PyTorch's fused kernel or our blocked form.

Paper: "Attention Is All You Need", Vaswani et al., NeurIPS 2017, https://arxiv.org/abs/1706.03762, equation 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regard.ops.blocked_softmax import blocked_is_faster, blocked_softmax_attention
from regard.ops.heads import repeat_heads
from regard.ops.precision import compute_dtype, without_autocast

Visible = Bool[Tensor, "#batch #heads #queries keys"]


@without_autocast
def softmax_weights(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    *,
    visible: Visible | None = None,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """softmax(q k^T / sqrt(d) + bias) over the visible keys; a row that sees nothing is 0."""
    dtype = compute_dtype(q)
    scores = torch.einsum("bhid,bhjd->bhij", q.to(dtype), repeat_heads(k, q.shape[1]).to(dtype)) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.to(dtype)
    if visible is None:
        return scores.softmax(dim=-1)
    weights = scores.masked_fill(~see_something(visible), -torch.inf).softmax(dim=-1)
    return torch.where(visible, weights, 0)


def softmax_attention_reference(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    visible: Visible | None = None,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """The equation as written: weights times values."""
    weights = softmax_weights(q, k, visible=visible, bias=bias)
    return (weights @ repeat_heads(v, q.shape[1]).to(weights.dtype)).to(q.dtype)


def see_something(visible: Visible) -> Visible:
    """Let rows that see nothing see everything, so that no row is empty; the caller sets their results to 0."""
    return visible | ~visible.any(dim=-1, keepdim=True)


def softmax_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    causal: bool = False,
    visible: Visible | None = None,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Softmax attention by the fastest exact path for the inputs.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries' (grouped-query attention).
        v: values.
        causal: hide the future; needs as many queries as keys and no `visible`.
        visible: which key each query may see. The result is undefined, but finite, in rows that see nothing.
        bias: added to the scores.
        dropout: probability of dropping a weight.
    """
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    plain = visible is None and bias is None and dropout == 0.0
    if plain and blocked_is_faster(q, k, v):
        return blocked_softmax_attention(q, k, v, causal=causal)
    extra: Tensor | None = None
    if visible is not None:
        extra = see_something(visible)
    if bias is not None:
        extra = bias.to(q.dtype) if extra is None else bias.to(q.dtype).masked_fill(~extra, -torch.inf)
    return scaled_dot_product_attention(q, k, v, attn_mask=extra, dropout_p=dropout, is_causal=causal)
