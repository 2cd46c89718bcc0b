"""Softmax attention with Transformer-XL's relative scores from a learned table: the reference and the fast path.

Papers: "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", Dai et al., ACL 2019,
https://arxiv.org/abs/1901.02860, section 3.3; with a vector and a number of its own for every distance, as in RCMHA,
Sugiharto et al., 2023, https://arxiv.org/abs/2308.03429:

    score_ij = ((q_i + u) . k_j + q_i . e_{j-i} + b_{j-i}) / sqrt(d).

Compared with hermansh-id/rcmha@87df49bf, `rcmha/attention.py:RelativeMultiHeadAttention`.

The fast path takes blocks of queries, each with the products of the distances that it can see, whose shift is a view
of their memory: no map but the weights outlives a block. With gradients, long inputs compute a block's weights again in
backward, and keep nothing of quadratic size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.ops.heads import repeat_heads
from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.relative_shift import relative_shift, relative_shift_reference
from regard.ops.softmax_attention import see_something, softmax_weights

BLOCK_ROWS = 128
"""Queries in a block."""
KEPT_SCORES = 1024 * 1024
"""Queries times keys up to which backward keeps the weights of all blocks instead of computing them again."""

Queries = Float[Tensor, "batch heads queries head_dim"]
Keys = Float[Tensor, "batch kv_heads keys head_dim"]
Values = Float[Tensor, "batch kv_heads keys value_dim"]
Embeddings = Float[Tensor, "offsets heads head_dim"]
"""A vector per distance, from 1 - keys to queries - 1; a distance is a key's position minus a query's."""
Offsets = Float[Tensor, "offsets heads"]
Visible = Bool[Tensor, "#batch #heads #queries keys"]
Bias = Float[Tensor, "#batch heads queries keys"]


@without_autocast
def relative_products(
    q: Queries, embeddings: Embeddings, offset_bias: Offsets
) -> Float[Tensor, "batch heads queries offsets"]:
    """(q_i . e_r + b_r) / sqrt(d) for every listed distance r, in at least float32."""
    dtype, scale = compute_dtype(q), q.shape[-1] ** -0.5
    batch, heads, queries, width = q.shape
    # heads first: a table serves all rows of the batch in one product
    rows = (q.to(dtype) * scale).transpose(0, 1).reshape(heads, batch * queries, width)
    added = offset_bias.to(dtype).T[:, None] * scale
    products = torch.baddbmm(added, rows, embeddings.to(dtype).permute(1, 2, 0))
    return products.view(heads, batch, queries, -1).transpose(0, 1)


def relative_weights(
    q: Queries,
    k: Keys,
    *,
    embeddings: Embeddings,
    offset_bias: Offsets,
    content_bias: Float[Tensor, "heads head_dim"],
    bias: Bias | None = None,
    visible: Visible | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """The softmax over the visible keys, as the equation says; a row that sees nothing is 0."""
    shifted = relative_shift_reference(relative_products(q, embeddings, offset_bias), k.shape[2])
    added = shifted if bias is None else shifted + bias.to(shifted.dtype)
    wide = q.to(shifted.dtype) + content_bias[:, None].to(shifted.dtype)
    return softmax_weights(wide, k, visible=visible, bias=added)


def relative_attention_reference(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    embeddings: Embeddings,
    offset_bias: Offsets,
    content_bias: Float[Tensor, "heads head_dim"],
    bias: Bias | None = None,
    visible: Visible | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Weights times values."""
    weights = relative_weights(
        q,
        k,
        embeddings=embeddings,
        offset_bias=offset_bias,
        content_bias=content_bias,
        bias=bias,
        visible=visible,
    )
    return (weights @ repeat_heads(v, q.shape[1]).to(weights.dtype)).to(q.dtype)


@without_autocast
def relative_attention(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    embeddings: Embeddings,
    offset_bias: Offsets,
    content_bias: Float[Tensor, "heads head_dim"],
    bias: Bias | None = None,
    causal: bool = False,
    visible: Visible | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """The same in blocks of queries.

    Args:
        q: queries; the last one stands at the last key.
        k: keys; their heads may be fewer than the queries' (grouped-query attention).
        v: values.
        embeddings: e, a vector for each of the `queries + keys - 1` distances.
        offset_bias: b, a number for each.
        content_bias: u.
        bias: further biases of the scores, as a map.
        causal: hide the future; without `visible`, which would have to hide it itself.
        visible: which key each query may see. The result is undefined, but finite, in rows that see nothing.
        dropout: probability of dropping a weight.

    Raises:
        ValueError: another number of distances, more queries than keys where causal, or `causal` with `visible`.
    """
    _check(q, k, embeddings, offset_bias, causal, visible)
    dtype = compute_dtype(q)
    k, v = (repeat_heads(x, q.shape[1]).to(dtype) for x in (k, v))
    contents = (q.to(dtype) + content_bias[:, None].to(dtype)) * q.shape[-1] ** -0.5
    queries, keys = q.shape[2], k.shape[2]
    again = queries * keys > KEPT_SCORES and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    pieces = []
    for rows in _blocks(queries):
        seen = keys - queries + rows.stop if causal else keys
        listed = slice(queries - rows.stop, queries - rows.stop + _columns(rows, seen, causal))
        given = (
            q[:, :, rows],
            contents[:, :, rows],
            k[:, :, :seen],
            v[:, :, :seen],
            embeddings[listed],
            offset_bias[listed],
            None if bias is None else bias[:, :, rows, :seen],
            None if visible is None else _rows_of(visible, rows, seen),
            causal,
            dropout,
        )
        pieces.append(checkpoint(_block, *given, use_reentrant=False) if again else _block(*given))
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)).to(q.dtype)


def relative_macs(queries: int, keys: int, *, head_dim: int, value_dim: int, past_only: bool) -> int:
    """Contraction MACs of the fast path for one row of the batch and one head."""
    macs = 0
    for rows in _blocks(queries):
        seen = keys - queries + rows.stop if past_only else keys
        met = seen * (head_dim + value_dim) + _columns(rows, seen, past_only) * head_dim
        macs += (rows.stop - rows.start) * met
    return macs


# --------------------------------------------------------------------------------------------------- blocks


def _blocks(queries: int) -> Iterator[slice]:
    for start in range(0, queries, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, queries))


def _columns(rows: slice, seen: int, causal: bool) -> int:
    """Distances that a block needs: of the future, one column alone, which keeps shifted rows apart."""
    everything = rows.stop - rows.start + seen - 1
    return min(seen + 1, everything) if causal else everything


def _rows_of(visible: Tensor, rows: slice, seen: int) -> Tensor:
    """A block's part of a map whose rows may be one for all."""
    return visible[..., :seen] if visible.shape[2] == 1 else visible[:, :, rows, :seen]


def _block(
    q: Tensor,
    contents: Tensor,
    k: Tensor,
    v: Tensor,
    embeddings: Tensor,
    offset_bias: Tensor,
    bias: Tensor | None,
    visible: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    rows, keys = q.shape[2], k.shape[2]
    scores = contents @ k.transpose(2, 3)
    scores.add_(relative_shift(relative_products(q, embeddings, offset_bias), keys))
    if bias is not None:
        scores.add_(bias.to(scores.dtype))
    if causal and rows > 1:
        row, column = torch.arange(rows, device=q.device), torch.arange(keys, device=q.device)
        scores.masked_fill_(column > keys - rows + row[:, None], -torch.inf)
    if visible is not None:
        scores.masked_fill_(~see_something(visible), -torch.inf)
    weights = scores.softmax(dim=-1)
    weights = torch.nn.functional.dropout(weights, dropout) if dropout > 0 else weights
    return weights @ v


def _check(q: Tensor, k: Tensor, embeddings: Tensor, offset_bias: Tensor, causal: bool, visible: Tensor | None) -> None:
    heads, queries, width = q.shape[1:]
    keys = k.shape[2]
    if heads % k.shape[1]:
        raise ValueError(f"the heads of q must be a multiple of those of k, got {heads} and {k.shape[1]}")
    if causal and visible is not None:
        raise ValueError("causal=True takes no visible: a map of visible keys must hide the future itself")
    if causal and queries > keys:
        raise ValueError(f"causal attention needs at least as many keys as queries, got {keys} and {queries}")
    for name, x, wanted in (
        ("embeddings", embeddings, (queries + keys - 1, heads, width)),
        ("offset_bias", offset_bias, (queries + keys - 1, heads)),
    ):
        if tuple(x.shape) != wanted:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, it must be {wanted}: queries + keys - 1 distances")
