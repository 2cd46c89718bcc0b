"""The relative shift: products of queries with distances become scores of queries with keys.

Paper: "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", Dai et al., ACL 2019,
https://arxiv.org/abs/1901.02860, appendix B. Its code, and hermansh-id/rcmha@87df49bf (`rcmha/util.py:shift_right`)
with it, appends a column of zeros, lays the rows out anew and cuts; here the result is a view of the products' own
memory, whose rows begin one column earlier each.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def relative_shift(
    products: Float[Tensor, "*batch queries offsets"], keys: int
) -> Float[Tensor, "*batch queries keys"]:
    """Row i, column j holds `products[i, j + queries - 1 - i]`: column t belongs to the distance t - (keys - 1).

    A distance is a key's position minus a query's, and the last query stands at the last key. The columns of the
    future may be left out, all but one: with `keys + 1` columns, entries for keys that lie two or more tokens ahead
    of their query are other entries' numbers, finite and for a mask to hide.

    Args:
        products: one column per distance; `queries + keys - 1` columns, or at least `keys + 1` (`keys` for one query).
        keys: number of keys.

    Raises:
        ValueError: too few columns.
    """
    queries, offsets = products.shape[-2:]
    needed = keys if queries == 1 else keys + 1
    if keys < 1 or offsets < min(needed, queries + keys - 1):
        raise ValueError(f"{queries} queries and {keys} keys need {needed} distances, got {offsets}")
    if queries == 1:
        return products[..., :keys]
    if keys == 1 and offsets == queries:
        # every row is its own distance, and rows one shorter would overlap
        return products.flip(-1).diagonal(dim1=-2, dim2=-1)[..., None]
    flat = products.flatten(-2)
    shifted = flat[..., queries - 1 : queries - 1 + queries * (offsets - 1)]
    return shifted.unflatten(-1, (queries, offsets - 1))[..., :keys]


def relative_shift_reference(
    products: Float[Tensor, "*batch queries offsets"], keys: int
) -> Float[Tensor, "*batch queries keys"]:
    """The same by gathering, for all `queries + keys - 1` distances."""
    queries, device = products.shape[-2], products.device
    columns = torch.arange(keys, device=device) + queries - 1 - torch.arange(queries, device=device)[:, None]
    return products.gather(-1, columns.expand(*products.shape[:-2], queries, keys))
