"""Splitting a model's width into heads and merging heads back."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def split_heads(x: Float[Tensor, "batch tokens width"], num_heads: int) -> Float[Tensor, "batch heads tokens head_dim"]:
    """`(b, n, h * d)` to `(b, h, n, d)`."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch tokens width"]:
    """`(b, h, n, d)` to `(b, n, h * d)`."""
    return x.transpose(1, 2).flatten(2)


def repeat_heads(
    x: Float[Tensor, "batch kv_heads tokens head_dim"], num_heads: int
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Each key/value head repeated for the query heads that share it."""
    return x if x.shape[1] == num_heads else x.repeat_interleave(num_heads // x.shape[1], dim=1)


def head_width(dim: int, num_heads: int) -> int:
    """Width of one head.

    Raises:
        ValueError: `dim` is not a multiple of `num_heads`.
    """
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise ValueError(f"dim must be a positive multiple of num_heads, got dim={dim} and num_heads={num_heads}")
    return dim // num_heads


def kv_head_count(num_heads: int, num_kv_heads: int | None) -> int:
    """Number of key/value heads: `num_heads` where none is given.

    Raises:
        ValueError: it does not divide `num_heads`.
    """
    count = num_heads if num_kv_heads is None else num_kv_heads
    if count < 1 or num_heads % count:
        raise ValueError(f"num_kv_heads must divide num_heads={num_heads}, got {num_kv_heads}")
    return count
