"""Full causal attention of queries that are the latest of many keys, without a map of queries and keys.

A map grows with both numbers, and a prompt that is read in pieces needs one for every piece. On a CPU the rows of the
map are one row, each a step further: it is read through a view with overlapping rows, for queries in reversed order, by
the same fused kernel that would read the whole map. Key heads that query heads share are read in place.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regard.ops.grouped_attention import grouped_attention
from regard.ops.precision import without_autocast
from regard.ops.softmax_attention import softmax_attention
from regard.ops.visibility import visible_keys


@without_autocast
def latest_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Causal softmax attention of the last `queries` of the keys' tokens.

    Args:
        q: queries, of the type of the keys.
        k: keys up to and with the last query's own; their heads may be fewer than the queries'.
        v: values.

    Raises:
        ValueError: more queries than keys.
    """
    queries, keys = q.shape[2], k.shape[2]
    if queries > keys:
        raise ValueError(f"the queries are the latest of the keys: {queries} queries and {keys} keys do not fit")
    if queries == keys:
        return softmax_attention(q, k, v, causal=True)
    if queries == 1:
        return grouped_attention(q, k, v)
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        # other devices' kernels want the map itself
        return softmax_attention(q, k, v, visible=visible_keys(queries, keys, causal=True, device=q.device))
    return _by_one_row(q, k, v)


def _by_one_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    queries, keys, shared = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    row = q.new_zeros(keys + queries - 1)
    row[keys:] = -torch.inf
    # the last query, first here, sees everything; each row that follows begins one entry further on
    hidden = row.as_strided((1, 1, queries, keys), (0, 0, 1, 1))
    keys_of_all, values_of_all = (x.flatten(0, 1)[:, None].expand(-1, shared, -1, -1) for x in (k, v))
    reversed_queries = q.unflatten(1, (-1, shared)).flatten(0, 1).flip(2)
    mixed = scaled_dot_product_attention(reversed_queries, keys_of_all, values_of_all, attn_mask=hidden)
    return mixed.flip(2).unflatten(0, (len(q), -1)).flatten(1, 2)
