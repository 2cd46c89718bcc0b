"""Masks for the registered attention functions: which keys are real, and which of them belong to the new tokens.

transformers asks a function of its own for each attention's mask; without one, padding never reaches the attention. A
causal or a bidirectional mask with padding is fully told by one row per sequence, so that no square of queries and
keys is ever built. Any other mask (windows of the model's own, packed sequences) becomes the usual boolean square.
Written for transformers 5's `masking_utils`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    prepare_padding_mask,
    sdpa_mask,
)

from regard.packing import pack_rows, take_tokens

REAL, NEW = 1, 2
"""Bits of a role: the key is a real token; the key stands at one of the call's own tokens."""


def key_roles(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> UInt8[Tensor, "batch 1 1 keys"] | Bool[Tensor, "batch 1 queries keys"] | None:
    """The mask of one attention, as transformers asks for it; None where all keys are real and the last are new.

    Args:
        batch_size: sequences.
        q_length: new tokens.
        kv_length: keys that the attention will be given.
        q_offset: column of the first new token.
        kv_offset: column of the first key.
        mask_function: the pattern.
        attention_mask: True = real token.
        device: where to build it.
        options: what `sdpa_mask` takes beside these.
    """
    if mask_function not in (causal_mask_function, bidirectional_mask_function) or kv_offset != 0:
        options = {**options, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        make: Callable[..., Any] = sdpa_mask
        square: Tensor = make(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            device=device,
            **options,
        )
        return square
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    columns = torch.arange(kv_length, device=device)
    end = q_offset + q_length
    if mask_function is bidirectional_mask_function:
        real = torch.ones(1, kv_length, dtype=torch.bool, device=device)
    else:
        real = (columns < end)[None]
    if padding is not None:
        real = real & padding.to(device)
    whole = padding is None or (not torch.compiler.is_compiling() and bool(padding.all()))
    if whole and isinstance(end, int) and end >= kv_length:
        return None
    new = (columns >= q_offset) & (columns < end)
    # four axes: transformers takes a mask of two for one that is still to be made
    return (real.to(torch.uint8) * REAL + new.to(torch.uint8) * NEW)[:, None, None].expand(batch_size, -1, -1, -1)


def is_roles(mask: Tensor) -> bool:
    """Whether a mask is one row of roles per sequence."""
    return mask.dtype == torch.uint8


def real_keys(roles: UInt8[Tensor, "batch 1 1 keys"]) -> Bool[Tensor, "batch keys"]:
    """Which keys are real."""
    return (roles[:, 0, 0] & REAL).bool()


def real_queries(roles: UInt8[Tensor, "batch 1 1 keys"], queries: int) -> Bool[Tensor, "batch queries"]:
    """Which of the new tokens are real."""
    places = pack_rows((roles[:, 0, 0] & NEW).bool())[0][:, :queries]
    return real_keys(roles).gather(1, places)


def first_new_key(roles: UInt8[Tensor, "batch 1 1 keys"]) -> Int[Tensor, " batch"]:
    """The column of the first new token."""
    return (roles[:, 0, 0] & NEW).argmax(dim=1)


@dataclass(frozen=True)
class PackedCall:
    """Queries, keys and values with the real tokens of every row at its front.

    Args:
        q: queries; those of padding come last.
        k: keys.
        v: values.
        first: position of the first query among the keys, for all rows or for each.
        lengths: number of real keys of every row; None = all that causality shows.
        order: where each query stood, and which are real; None = nothing was moved.
    """

    q: Float[Tensor, "batch heads queries head_dim"]
    k: Float[Tensor, "batch kv_heads keys head_dim"]
    v: Float[Tensor, "batch kv_heads keys value_dim"]
    first: int | Int[Tensor, " batch"]
    lengths: Int[Tensor, " batch"] | None
    order: tuple[Int[Tensor, "batch queries"], Bool[Tensor, "batch queries"]] | None

    def unpack(self, mixed: Tensor) -> Float[Tensor, "batch queries heads value_dim"]:
        """Results at their queries' places, as transformers wants them; 0 where a query is padding."""
        if self.order is None:
            return mixed.transpose(1, 2)
        order, real = self.order
        back = take_tokens(mixed, torch.argsort(order, dim=1), dim=2)
        return torch.where(real[:, None, :, None], back, 0).transpose(1, 2)


def pack_call(q: Tensor, k: Tensor, v: Tensor, roles: Tensor | None) -> PackedCall:
    """Move padding to the right end of every row, and slots of a cache that are not filled with it.

    Args:
        q: queries.
        k: keys.
        v: values.
        roles: from `key_roles`; None = all keys are real, and the queries are the last of them.
    """
    if roles is None:
        return PackedCall(q, k, v, k.shape[2] - q.shape[2], None, None)
    real, asking = real_keys(roles), real_queries(roles, q.shape[2])
    key_order, _ = pack_rows(real)
    query_order, _ = pack_rows(asking)
    lengths = real.sum(dim=1)
    return PackedCall(
        take_tokens(q, query_order, dim=2),
        take_tokens(k, key_order, dim=2),
        take_tokens(v, key_order, dim=2),
        first=lengths - asking.sum(dim=1),
        lengths=lengths,
        order=(query_order, asking),
    )
