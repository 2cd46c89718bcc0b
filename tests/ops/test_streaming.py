"""StreamingLLM's attention by ranks, restated with loops, and the slots of its cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.measure import contraction_macs
from regard.ops.heads import repeat_heads
from regard.ops.rotary import rotate
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.streaming import (
    Streaming,
    cache_ranks,
    streaming_attention,
    streaming_macs,
    streaming_visible,
    streaming_weights,
)
from regard.ops.visibility import visible_keys

DOUBLE = torch.float64


def inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, heads, tokens, width, dtype=DOUBLE) for heads, width in ((6, 8), (3, 8), (3, 5)))
    return q, k, v


def seen_by(i: int, streaming: Streaming) -> list[int]:
    carried = list(range(i))
    if i > streaming.cache_size:
        late = streaming.cache_size - streaming.sinks
        carried = [*range(streaming.sinks), *range(i - late, i)]
    return [*carried, i]


def by_loops(q: Tensor, k: Tensor, v: Tensor, streaming: Streaming) -> Tensor:
    batch, heads, tokens, width = q.shape
    mixed = torch.zeros(batch, heads, tokens, v.shape[-1], dtype=q.dtype)
    for i in range(tokens):
        seen = seen_by(i, streaming)
        own, keys = q[:, :, i : i + 1], k[:, :, seen]
        if streaming.rope_base is not None:
            ranks = torch.arange(len(seen))[None]
            own, keys = (
                rotate(own, ranks[:, -1:], base=streaming.rope_base),
                rotate(keys, ranks, base=streaming.rope_base),
            )
        weights = (own @ repeat_heads(keys, heads).transpose(2, 3) * width**-0.5).softmax(dim=-1)
        mixed[:, :, i : i + 1] = weights @ repeat_heads(v[:, :, seen], heads)
    return mixed


@pytest.mark.parametrize("rope_base", [None, 50.0])
@pytest.mark.parametrize(("cache_size", "sinks"), [(7, 2), (5, 5), (6, 0), (1, 1), (1, 0), (28, 4), (200, 4)])
def test_attention_is_the_definition(cache_size: int, sinks: int, rope_base: float | None) -> None:
    streaming = Streaming(cache_size=cache_size, sinks=sinks, rope_base=rope_base)
    q, k, v = inputs(29)
    expected = by_loops(q, k, v, streaming)
    torch.testing.assert_close(streaming_attention(q, k, v, streaming), expected)
    torch.testing.assert_close(streaming_weights(q, k, streaming) @ repeat_heads(v, 6), expected)
    visible = streaming_visible(29, streaming, q.device)[0, 0]
    for i in range(29):
        assert visible[i].nonzero().flatten().tolist() == seen_by(i, streaming)


@pytest.mark.parametrize("tokens", [1, 64, 150, 263])
def test_blocks_of_queries_and_macs(tokens: int) -> None:
    streaming = Streaming(cache_size=20, sinks=3, rope_base=50.0)
    q, k, v = inputs(tokens)
    torch.testing.assert_close(streaming_attention(q, k, v, streaming), by_loops(q, k, v, streaming))
    counted = contraction_macs(lambda: streaming_attention(q, k, v, streaming))
    assert counted == 2 * 6 * streaming_macs(streaming, tokens=tokens, head_dim=8, value_dim=5)


def test_macs_grow_linearly() -> None:
    streaming = Streaming(cache_size=500, sinks=4, rope_base=50.0)
    short, long = (streaming_macs(streaming, tokens=497 * n, head_dim=8, value_dim=8) for n in (4, 32))
    assert long == 8 * short


def test_room_for_everything_is_softmax_attention() -> None:
    q, k, v = inputs(21)
    places = torch.arange(21)[None]
    turned_q, turned_k = rotate(q, places, base=50.0), rotate(k, places, base=50.0)
    causal = visible_keys(21, 21, causal=True, device=q.device)
    expected = softmax_attention_reference(turned_q, turned_k, v, visible=causal)
    torch.testing.assert_close(streaming_attention(q, k, v, Streaming(cache_size=20, rope_base=50.0)), expected)


def test_gradients_are_those_of_the_weights() -> None:
    streaming = Streaming(cache_size=7, sinks=2, rope_base=50.0)
    leaves = [x.requires_grad_() for x in inputs(29)]
    q, k, v = leaves
    found = torch.autograd.grad(streaming_attention(q, k, v, streaming).square().sum(), leaves)
    dense = streaming_weights(q, k, streaming) @ repeat_heads(v, 6)
    for ours, theirs in zip(found, torch.autograd.grad(dense.square().sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("cache_size", "sinks"), [(7, 2), (5, 5), (3, 0)])
def test_slots_hold_the_sinks_and_the_latest(cache_size: int, sinks: int) -> None:
    streaming = Streaming(cache_size=cache_size, sinks=sinks)
    slots = [-1] * (cache_size + 1)
    for token in range(25):
        slots[token if token < sinks else sinks + (token - sinks) % streaming.window] = token
        held, ranks = cache_ranks(torch.tensor([token + 1]), streaming)
        assert held.tolist() == [slots]
        order = sorted(held for held in slots if held >= 0)
        assert order == seen_by(token, streaming)
        for slot, which in enumerate(slots):
            assert which < 0 or int(ranks[0, slot]) == order.index(which)
    assert cache_ranks(torch.tensor([0]), streaming)[0].tolist() == [[-1] * (cache_size + 1)]


@pytest.mark.parametrize("options", [{"cache_size": 0, "sinks": 0}, {"cache_size": 3, "sinks": 4}, {"sinks": -1}])
def test_ill_sizes_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"cache_size must be .*and sinks={options['sinks']}"):
        Streaming(**options)
