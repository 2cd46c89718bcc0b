"""Absolute positions of tokens, counted under the mask rule, and their sinusoidal encoding.

Paper: "Attention Is All You Need", Vaswani et al., NeurIPS 2017, https://arxiv.org/abs/1706.03762, section 3.5, with
all sines first and all cosines after them.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.visibility import run_starts
from regard.packing import pack_rows, take_tokens

LONGEST_WAVE = 10000.0


def token_positions(
    tokens: Int[Tensor, "batch tokens"],
    *,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    segments: Int[Tensor, "batch tokens"] | None = None,
    start: Int[Tensor, " batch"] | None = None,
) -> Int[Tensor, "batch tokens"]:
    """The number of real tokens before each in its row, or, with segments, in its run of equal numbers.

    Args:
        tokens: ids; only their shape and device matter.
        mask: True = real token; positions of others mean nothing.
        segments: packed sequences; runs are those of the real tokens alone.
        start: tokens seen before, per row.

    Raises:
        ValueError: a mask or segments of another shape.
    """
    for name, other in (("mask", mask), ("segments", segments)):
        if other is not None and other.shape != tokens.shape:
            raise ValueError(f"{name} has shape {tuple(other.shape)}, it must be {tuple(tokens.shape)}")
    places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    order = None if mask is None else pack_rows(mask)[0]
    if segments is not None:
        places = places - run_starts(segments if order is None else take_tokens(segments, order, dim=1))
    if order is not None:
        places = take_tokens(places, torch.argsort(order, dim=1), dim=1)
    return places if start is None else places + start[:, None]


def sinusoids(positions: Int[Tensor, "batch tokens"], dim: int) -> Float[Tensor, "batch tokens dim"]:
    """sin(p w_c), then cos(p w_c), with w_c = 10000^(-c / half), half = ceil(dim / 2); cut to `dim`.

    Raises:
        ValueError: `dim` is not positive.
    """
    if dim < 1:
        raise ValueError(f"dim must be positive, got {dim}")
    half = (dim + 1) // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-math.log(LONGEST_WAVE) / half))
    angles = positions[..., None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[..., :dim]
