"""Attention functions for transformers' models: each mechanism on a model's own queries, keys and values.

A function is registered together with `key_roles`, the mask function that it understands, so that padding can never
be dropped. A mask that a mechanism cannot keep is refused.
Written for transformers 5's `AttentionInterface`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard.integrations.transformers.caches import Advance, owner_of
from regard.integrations.transformers.landmark import landmark, landmark_tokens
from regard.integrations.transformers.masks import PackedCall, is_roles, pack_call, real_keys
from regard.integrations.transformers.mechanism import Mechanism
from regard.integrations.transformers.steps import (
    h2o_step,
    hip_step,
    recycled_step,
    rotary_base,
    softmax_step,
    streaming_step,
)
from regard.integrations.transformers.visual import visual_attention
from regard.ops.hip import HiPSizes, hip_attention
from regard.ops.hip_search import Sample
from regard.ops.latest_attention import latest_attention
from regard.ops.recycled import Recycling, Reduction
from regard.ops.softmax_attention import softmax_attention
from regard.ops.streaming import Streaming

PREFIX = "regard_"


def attention_function(name: str, mechanism: Mechanism) -> Callable[..., tuple[Tensor, None]]:
    """The function that transformers calls for every attention of a model.

    Args:
        name: as registered, for messages.
        mechanism: what to run.
    """

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """(batch, queries, heads, value_dim), and no weights; `options` are the model's, which concern others."""
        if dropout > 0 and module.training:
            raise ValueError(f"{name} has no dropout of weights, got {dropout}: set the model's attention dropout to 0")
        causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
        if scaling is not None and scaling != query.shape[-1] ** -0.5:
            query = query * (scaling * query.shape[-1] ** 0.5)
        if mechanism.inside is not None:
            return mechanism.inside(module, query, key, value, attention_mask).transpose(1, 2), None
        if attention_mask is not None and not is_roles(attention_mask):
            return _square(name, mechanism, query, key, value, attention_mask), None
        if not causal:
            if mechanism.bidirectional is None:
                raise ValueError(f"{name} is causal, and {type(module).__name__} attends in both directions")
            real = None if attention_mask is None else real_keys(attention_mask)
            return mechanism.bidirectional(query, key, value, real).transpose(1, 2), None
        layer = owner_of(key)
        if layer is not None:
            if layer.name != name:
                raise ValueError(f"the cache is one of {layer.name}, and the model's attention is {name}")
            return layer.attend(query, key, value, attention_mask), None
        if mechanism.causal is None:
            raise ValueError(_no_causal_form(name, mechanism, module))
        call = pack_call(query, key, value, attention_mask)
        return call.unpack(mechanism.causal(call, getattr(module, "layer_idx", None))), None

    attend.__name__ = attend.__qualname__ = name
    return attend


def _no_causal_form(name: str, mechanism: Mechanism, module: nn.Module) -> str:
    if mechanism.step is None:
        return f"{name} has no causal form, and {type(module).__name__} is causal"
    short = name.removeprefix(PREFIX)
    return (
        f"{name} needs its own cache: pass past_key_values=new_cache(model, {short!r}) of "
        "regard.integrations.transformers to the model or to generate, anew for every prompt"
    )


def _square(name: str, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    if mechanism.square is None or owner_of(k) is not None:
        raise ValueError(
            f"{name} keeps causal and bidirectional masks with padding, and this model asks for another one: "
            "set its attention to 'sdpa', at least for these layers"
        )
    visible = mask if mask.dtype == torch.bool else mask == 0
    return mechanism.square(q, k, v, visible).transpose(1, 2)


# ----------------------------------------------------------------------------------------------- softmax attention


def _softmax_causal(call: PackedCall, layer: int | None = None) -> Tensor:
    queries, keys = call.q.shape[2], call.k.shape[2]
    if call.lengths is None:
        return latest_attention(call.q, call.k, call.v)
    first = torch.as_tensor(call.first, device=call.q.device)
    rows = first[:, None] + torch.arange(queries, device=first.device)
    visible = (torch.arange(keys, device=first.device) <= rows[..., None])[:, None]
    return softmax_attention(call.q, call.k, call.v, visible=visible)


def _softmax_bidirectional(q: Tensor, k: Tensor, v: Tensor, real: Tensor | None) -> Tensor:
    return softmax_attention(q, k, v, visible=None if real is None else real[:, None, None])


def _softmax_square(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    mixed = softmax_attention(q, k, v, visible=visible)
    return torch.where(visible.any(dim=-1, keepdim=True), mixed, 0)


def _softmax_step(config: Any, layer: int, max_len: int | None = None) -> Advance:
    return softmax_step(max_len=max_len)


def softmax() -> Mechanism:
    """Softmax attention by our fastest exact path: what the others are compared with."""
    return Mechanism(_softmax_causal, _softmax_bidirectional, _softmax_square, _softmax_step)


# ------------------------------------------------------------------------------------------------------------- HiP


def hip(
    *,
    mask_k: int = 512,
    block_q: int = 64,
    block_k: int = 2,
    window: int = 256,
    sinks: int = 16,
    refresh: int = 8,
    sample: Sample = "first",
    dense_layers: int = 3,
) -> Mechanism:
    """HiP attention; without its own cache every decoded token searches.

    Args:
        mask_k: keys to choose for each block of queries.
        block_q: queries in a block.
        block_k: keys in a block.
        window: latest keys that are always seen.
        sinks: first keys that are always seen.
        refresh: tokens between searches, with the cache of `new_cache`.
        sample: which block stands for a range of keys.
        dense_layers: first layers of the model that attend in full, as the paper has it.

    Raises:
        ValueError: sizes that do not fit.
    """
    sizes = HiPSizes(mask_k=mask_k, block_q=block_q, block_k=block_k, window=window, sinks=sinks, sample=sample)
    sizes.for_single_queries(refresh)
    if dense_layers < 0:
        raise ValueError(f"dense_layers must be 0 or more, got {dense_layers}")

    def attend(call: PackedCall, layer: int | None) -> Tensor:
        if layer is not None and layer < dense_layers:
            return _softmax_causal(call)
        return hip_attention(call.q, call.k, call.v, sizes, first=call.first, lengths=call.lengths)

    def step(config: Any, layer: int, max_len: int | None = None) -> Advance:
        if layer < dense_layers:
            return softmax_step(max_len=max_len)
        return hip_step(sizes, refresh=refresh, max_len=max_len)

    return Mechanism(attend, step=step)


# ------------------------------------------------------------------------------------------- fewer keys per token


def recycled(
    *,
    top_k: int = 512,
    stride: int | None = 16,
    reduce: Reduction = "max",
    threshold: float | None = None,
    check_stride: int = 1,
) -> Mechanism:
    """Recycled attention: a prompt in full, then most tokens on the keys that an earlier one found.

    Args:
        top_k: keys that are recycled.
        stride: tokens from one full step to the next; None = never.
        reduce: how the query heads that share a key are put together.
        threshold: a step is full where its queries are less alike to the last full step's; None = by `stride`.
        check_stride: with `threshold`, tokens from one look to the next.

    Raises:
        ValueError: a number out of its range.
    """
    recycling = Recycling(top_k=top_k, stride=stride, reduce=reduce, threshold=threshold, check_stride=check_stride)
    return Mechanism(step=lambda config, layer, max_len=None: recycled_step(recycling, max_len=max_len))


def h2o(*, cache_size: int = 512, refresh_stride: int | None = None) -> Mechanism:
    """H2O: a prompt in full, then the latest keys and those that were given most attention.

    Args:
        cache_size: keys that are carried from token to token.
        refresh_stride: tokens at its multiples attend to all keys, which then stay in memory; None = never.

    Raises:
        ValueError: a number that is not positive.
    """
    _check_positive(cache_size=cache_size, refresh_stride=refresh_stride)

    def step(config: Any, layer: int, max_len: int | None = None) -> Advance:
        return h2o_step(cache_size=cache_size, refresh_stride=refresh_stride, max_len=max_len)

    return Mechanism(step=step)


def streaming_llm(*, cache_size: int = 512, num_sinks: int = 4, refresh_stride: int | None = None) -> Mechanism:
    """StreamingLLM: the first keys and the latest, with positions by rank, for prompts too.

    Args:
        cache_size: keys that are carried from token to token.
        num_sinks: how many of them are the first.
        refresh_stride: tokens at its multiples attend to all keys, which then stay in memory; None = never.

    Raises:
        ValueError: sizes that do not fit.
    """
    _check_positive(refresh_stride=refresh_stride)
    Streaming(cache_size=cache_size, sinks=num_sinks)

    def step(config: Any, layer: int, max_len: int | None = None) -> Advance:
        base = rotary_base(config, "streaming_llm")
        sizes = Streaming(cache_size=cache_size, sinks=num_sinks, rope_base=base)
        return streaming_step(sizes, refresh_stride=refresh_stride, max_len=max_len)

    return Mechanism(step=step)


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


# ------------------------------------------------------------------------------------------------------------- VAR


def var() -> Mechanism:
    """Redistribution of visual sinks' attention, in a model that `redistribute_visual` has prepared."""
    return Mechanism(inside=visual_attention)


MECHANISMS: Mapping[str, Callable[..., Mechanism]] = {
    "softmax": softmax,
    "hip": hip,
    "recycled": recycled,
    "streaming_llm": streaming_llm,
    "h2o": h2o,
    "landmark": landmark,
    "landmark_tokens": landmark_tokens,
    "var": var,
}
"""Makers of mechanisms by name; their keyword arguments are the mechanism's options."""
