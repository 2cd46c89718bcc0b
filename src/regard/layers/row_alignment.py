"""Tokens of rows that are at different phases, laid out so that every row's chunks begin at the same places.

Decoding hands new tokens to rows whose chunk under way has taken in different numbers of tokens. `RowAlignment` shifts
each row right by its phase; what stands before its first token and after its last is marked as not real.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class RowAlignment(NamedTuple):
    """Where the tokens of each row go."""

    source: Int[Tensor, "batch places"]
    """The token at each place; some token where there is none."""
    real: Bool[Tensor, "batch places"]
    """Whether a token is there."""
    filled: Int[Tensor, " batch"]
    """Places up to each row's last token."""
    target: Int[Tensor, "batch tokens"]
    """The place of each token."""

    def place(self, x: Tensor, *, dim: int) -> Tensor:
        """Tokens on axis `dim` moved to their places; anything, but finite, where no token is."""
        return take_along(x, self.source, dim=dim)

    def back(self, x: Tensor, *, dim: int) -> Tensor:
        """Places on axis `dim` back in the order of the tokens."""
        return take_along(x, self.target, dim=dim)


def align_rows(
    phase: Int[Tensor, " batch"], counts: Int[Tensor, " batch"], *, tokens: int, chunk_size: int
) -> RowAlignment:
    """Lay out `tokens` tokens per row, the first `counts` of which are real, from place `phase` on.

    Args:
        phase: tokens that the chunk under way already has, below `chunk_size`.
        counts: real tokens of each row.
        tokens: tokens of each row, padding included.
        chunk_size: places are a multiple of it, whatever the phases.
    """
    places = -(-(chunk_size - 1 + tokens) // chunk_size) * chunk_size
    number = torch.arange(places, device=phase.device) - phase[:, None]
    real = (number >= 0) & (number < counts[:, None])
    target = torch.arange(tokens, device=phase.device) + phase[:, None]
    return RowAlignment(number.clamp(0, tokens - 1), real, phase + counts, target)


def take_along(x: Tensor, index: Int[Tensor, "batch places"], *, dim: int) -> Tensor:
    """The entries `index[b]` of axis `dim`, for each row b of `x` (batch on axis 0)."""
    shape = [1] * x.ndim
    shape[0], shape[dim] = index.shape
    wanted = [*x.shape]
    wanted[dim] = index.shape[1]
    return x.gather(dim, index.view(shape).expand(wanted))
