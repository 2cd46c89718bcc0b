"""Softmax attention whose weights are multiplied by factors of the relative position: the reference and the fast path.

Paper: "Your Transformer May Not be as Powerful as You Expect", Luo et al., NeurIPS 2022,
https://arxiv.org/abs/2205.13401, universal relative positional encoding:

    Attention(Q, K, V) = (softmax(Q K^T / sqrt(d) + B) * C) V,

with B and C Toeplitz and * taken entry by entry. C may be negative, so it is no bias of the scores, and rows need not
sum to 1. Compared with lsj2408/URPE@47b711f8, `fairseq/modules/multihead_attention.py:MultiheadAttention`.

The fast path takes blocks of queries. Read from its last row to its first, a Toeplitz map is a view of one vector, so
the blocks' queries are turned around instead, and neither B nor C ever exists as a map. With gradients, long inputs
compute a block's weights again in backward ("FlashAttention", Dao et al., NeurIPS 2022,
https://arxiv.org/abs/2205.14135, section 3.1), and keep nothing of quadratic size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.ops.heads import repeat_heads
from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.softmax_attention import see_something, softmax_weights
from regard.ops.toeplitz import upside_down

BLOCK_ROWS = 128
"""Queries in a block."""
KEPT_SCORES = 1024 * 1024
"""Queries times keys up to which backward keeps the weights of all blocks instead of computing them again."""

Visible = Bool[Tensor, "#batch #heads #queries keys"]
Offsets = Float[Tensor, "heads offsets"]
"""One number per distance; see `regard.ops.toeplitz`."""


@without_autocast
def urpe_weights(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    *,
    factors: Float[Tensor, "#batch heads queries keys"] | None,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    visible: Visible | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """The signed map softmax(q k^T / sqrt(d) + B) * C; 0 where a key is not seen."""
    weights = softmax_weights(q, k, visible=visible, bias=bias)
    return weights if factors is None else weights * factors.to(weights.dtype)


def urpe_attention_reference(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    factors: Float[Tensor, "#batch heads queries keys"] | None,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    visible: Visible | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """The equation as written: the signed map times values."""
    weights = urpe_weights(q, k, factors=factors, bias=bias, visible=visible)
    return (weights @ repeat_heads(v, q.shape[1]).to(weights.dtype)).to(q.dtype)


@without_autocast
def urpe_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    factors: Offsets | None,
    biases: Offsets | None = None,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    causal: bool = False,
    visible: Visible | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """The same from vectors of factors and biases, in blocks of queries.

    Args:
        q: queries; the last one stands at the last key.
        k: keys; their heads may be fewer than the queries' (grouped-query attention).
        v: values.
        factors: C by distance; None = 1, plain attention with relative biases.
        biases: B by distance; None = 0.
        bias: further biases, as a map.
        causal: hide the future; without `visible`, which would have to hide it itself.
        visible: which key each query may see. The result is undefined, but finite, in rows that see nothing.
        dropout: probability of dropping a weight, after C.

    Raises:
        ValueError: vectors of another length, more queries than keys where causal, or `causal` with `visible`.
    """
    _check(q, k, factors, biases, causal, visible)
    dtype = compute_dtype(q)
    k, v = (repeat_heads(x, q.shape[1]).to(dtype) for x in (k, v))
    scaled = q.to(dtype) * q.shape[-1] ** -0.5
    queries, keys = q.shape[2], k.shape[2]
    again = queries * keys > KEPT_SCORES and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    pieces = []
    for rows in _blocks(queries):
        seen = keys - queries + rows.stop if causal else keys
        offsets = slice(queries - rows.stop, queries - rows.start + seen - 1)
        given = (
            scaled[:, :, rows],
            k[:, :, :seen],
            v[:, :, :seen],
            None if factors is None else factors[:, offsets].to(dtype),
            None if biases is None else biases[:, offsets].to(dtype),
            _rows_of(bias, rows, seen),
            _rows_of(visible, rows, seen),
            causal,
            dropout,
        )
        pieces.append(checkpoint(_block, *given, use_reentrant=False) if again else _block(*given))
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)).to(q.dtype)


def urpe_macs(queries: int, keys: int, *, head_dim: int, value_dim: int, past_only: bool) -> int:
    """Contraction MACs of the fast path for one row of the batch and one head."""
    seen = sum(
        (rows.stop - rows.start) * (keys - queries + rows.stop if past_only else keys) for rows in _blocks(queries)
    )
    return seen * (head_dim + value_dim)


# --------------------------------------------------------------------------------------------------- blocks


def _blocks(queries: int) -> Iterator[slice]:
    for start in range(0, queries, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, queries))


def _rows_of(x: Tensor | None, rows: slice, seen: int) -> Tensor | None:
    """A block's part of a map whose rows may be one for all."""
    if x is None:
        return None
    return x[..., :seen] if x.shape[2] == 1 else x[:, :, rows, :seen]


def _block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factors: Tensor | None,
    biases: Tensor | None,
    bias: Tensor | None,
    visible: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    """One block, its queries from the last to the first."""
    rows, keys = q.shape[2], k.shape[2]
    scores = q.flip(2) @ k.transpose(2, 3)
    if biases is not None:
        scores.add_(upside_down(biases, rows))
    if bias is not None:
        scores.add_(bias.to(scores.dtype).flip(2))
    if causal and rows > 1:
        row, column = torch.arange(rows, device=q.device), torch.arange(keys, device=q.device)
        scores.masked_fill_(column > keys - 1 - row[:, None], -torch.inf)
    if visible is not None:
        scores.masked_fill_(~see_something(visible).flip(2), -torch.inf)
    weights = scores.softmax(dim=-1)
    if factors is not None:
        weights = weights * upside_down(factors, rows)
    weights = torch.nn.functional.dropout(weights, dropout) if dropout > 0 else weights
    return (weights @ v).flip(2)


def _check(
    q: Tensor, k: Tensor, factors: Tensor | None, biases: Tensor | None, causal: bool, visible: Tensor | None
) -> None:
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    if heads % k.shape[1]:
        raise ValueError(f"the heads of q must be a multiple of those of k, got {heads} and {k.shape[1]}")
    if causal and visible is not None:
        raise ValueError("causal=True takes no visible: a map of visible keys must hide the future itself")
    if causal and queries > keys:
        raise ValueError(f"causal attention needs at least as many keys as queries, got {keys} and {queries}")
    wanted = (heads, queries + keys - 1)
    for name, x in (("factors", factors), ("biases", biases)):
        if x is not None and tuple(x.shape) != wanted:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, it must be (heads, queries + keys - 1) = {wanted}")
