"""Which query may see which key: causality, padding and packed segments as one boolean map."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def run_numbers(segments: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """Number the runs of equal segment numbers from 0: `0,0,1,0` becomes `0,0,1,2`."""
    borders = segments[:, 1:] != segments[:, :-1]
    return torch.nn.functional.pad(borders.cumsum(dim=1), (1, 0))


def run_starts(segments: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """The place of the first token of each token's run: `0,0,1,0` becomes `0,0,2,3`."""
    places = torch.arange(segments.shape[1], device=segments.device)
    borders = torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
    return torch.where(borders, places, 0).cummax(dim=1).values


def visible_keys(
    queries: int,
    keys: int,
    *,
    causal: bool,
    mask: Bool[Tensor, "batch keys"] | None = None,
    segments: Int[Tensor, "batch tokens"] | None = None,
    device: torch.device,
) -> Bool[Tensor, "#batch 1 queries keys"] | None:
    """The map of visible keys, or None where every key is visible to every query.

    Args:
        queries: number of queries.
        keys: number of keys; with `causal`, the last query sees the last key.
        causal: hide the future.
        mask: True = real key.
        segments: packed sequences; `queries == keys`.
        device: where to build the map.
    """
    visible = None
    if causal:
        rows = torch.arange(queries, device=device)[:, None] + (keys - queries)
        visible = (torch.arange(keys, device=device) <= rows)[None, None]
    if mask is not None:
        allowed = mask[:, None, None, :]
        visible = allowed if visible is None else visible & allowed
    if segments is not None:
        runs = run_numbers(segments)
        together = (runs[:, :, None] == runs[:, None, :])[:, None]
        visible = together if visible is None else visible & together
    return visible
