"""Maps whose entries depend on the distance from query to key alone, kept as one number per distance.

A vector of `queries + keys - 1` numbers stands for the whole map: its entry t belongs to the distance
t - (keys - 1), where a distance is a key's position minus a query's, and the last query stands at the last key.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def distances(queries: int, keys: int, *, device: torch.device) -> Int[Tensor, " offsets"]:
    """The distances that such a vector lists, from the last query's to the first key, to the first query's to the last.

    Raises:
        ValueError: a number that is not positive.
    """
    if queries < 1 or keys < 1:
        raise ValueError(f"queries and keys must be positive, got queries={queries} and keys={keys}")
    return torch.arange(1 - keys, queries, device=device)


def toeplitz(values: Float[Tensor, "*heads offsets"], queries: int) -> Float[Tensor, "*heads queries keys"]:
    """The map itself: row i, column j holds `values[j + queries - 1 - i]`.

    Args:
        values: one number per distance.
        queries: number of rows.

    Raises:
        ValueError: fewer distances than rows.
    """
    return upside_down(values, queries).flip(-2)


def upside_down(values: Float[Tensor, "*heads offsets"], queries: int) -> Float[Tensor, "*heads queries keys"]:
    """The map from its last row to its first, which is a view of the vector: no memory of quadratic size.

    Raises:
        ValueError: fewer distances than rows.
    """
    keys = values.shape[-1] - queries + 1
    if queries < 1 or keys < 1:
        raise ValueError(f"{values.shape[-1]} distances are too few for {queries} queries and at least 1 key")
    return values.unfold(-1, keys, 1)
