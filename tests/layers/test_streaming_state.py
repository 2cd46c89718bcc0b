"""Streaming through a cache of constant size against the whole sequence at once, and full steps in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.layers.streaming_state import empty_streaming_plus_state, empty_streaming_state
from regard.ops.rotary import rotate
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.streaming import Streaming, streaming_attention
from regard.ops.visibility import visible_keys

DOUBLE = torch.float64
CHUNKS = [[1] * 37, [3, 5, 1, 20, 2, 1, 5], [37]]
SIZES = {"num_kv_heads": 2, "head_dim": 8, "value_dim": 5, "like": torch.zeros(1, dtype=DOUBLE)}


def streams(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(batch, heads, 37, width, dtype=DOUBLE) for heads, width in ((4, 8), (2, 8), (2, 5)))
    return q, k, v


@pytest.mark.parametrize("rope_base", [None, 50.0])
@pytest.mark.parametrize(("cache_size", "sinks"), [(9, 3), (4, 4), (5, 0), (1, 0), (60, 4)])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_steps_are_the_whole_sequence(chunks: list[int], cache_size: int, sinks: int, rope_base: float | None) -> None:
    streaming = Streaming(cache_size=cache_size, sinks=sinks, rope_base=rope_base)
    q, k, v = streams()
    state, found, seen = empty_streaming_state(2, streaming, **SIZES), [], 0
    size = state.nbytes
    with torch.no_grad():
        for pieces in zip(*(x.split(chunks, dim=2) for x in (q, k, v)), strict=True):
            mixed, state = state.advance(*pieces, streaming)
            found.append(mixed)
            seen += mixed.shape[2]
            kept = list(range(seen))
            if seen > cache_size:
                kept = kept[:sinks] + (kept[sinks - cache_size :] if cache_size > sinks else [])
            assert state.carried(streaming).tolist() == [kept + [-1] * (cache_size - len(kept))] * 2
            assert state.keys_read(streaming).tolist() == [min(seen, cache_size + 1)] * 2
            assert state.nbytes == size
    torch.testing.assert_close(torch.cat(found, dim=2), streaming_attention(q, k, v, streaming))


def with_full_steps(q: Tensor, k: Tensor, v: Tensor, streaming: Streaming, stride: int) -> Tensor:
    mixed = streaming_attention(q, k, v, streaming)
    if streaming.rope_base is not None:
        q, k = (rotate(x, torch.arange(q.shape[2])[None], base=streaming.rope_base) for x in (q, k))
    causal = visible_keys(q.shape[2], q.shape[2], causal=True, device=q.device)
    mixed[:, :, ::stride] = softmax_attention_reference(q, k, v, visible=causal)[:, :, ::stride]
    return mixed


@pytest.mark.parametrize("rope_base", [None, 50.0])
@pytest.mark.parametrize("stride", [1, 4, 50])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_full_steps_see_every_key_at_its_own_place(chunks: list[int], stride: int, rope_base: float | None) -> None:
    streaming = Streaming(cache_size=7, sinks=2, rope_base=rope_base)
    q, k, v = streams()
    expected = with_full_steps(q, k, v, streaming, stride)
    state, found = empty_streaming_plus_state(2, streaming, **SIZES, max_len=37), []
    with torch.no_grad():
        for pieces in zip(*(x.split(chunks, dim=2) for x in (q, k, v)), strict=True):
            mixed, state = state.advance(*pieces, streaming, stride=stride)
            found.append(mixed)
    torch.testing.assert_close(torch.cat(found, dim=2), expected)


@pytest.mark.parametrize("stride", [None, 4])
def test_rows_of_other_lengths_are_decoded_as_if_alone(stride: int | None) -> None:
    streaming = Streaming(cache_size=7, sinks=2, rope_base=50.0)
    q, k, v = streams()
    counts = torch.tensor([[13, 1, 0, 5, 1, 4, 1, 1], [6, 1, 1, 0, 1, 7, 0, 1]]).T
    states = {"window": empty_streaming_state(2, streaming, **SIZES)}
    if stride is not None:
        states = {"plus": empty_streaming_plus_state(2, streaming, **SIZES, max_len=None)}
    ((_, state),) = states.items()
    done = [0, 0]
    whole = [
        streaming_attention(*(x[b : b + 1] for x in (q, k, v)), streaming)
        if stride is None
        else with_full_steps(*(x[b : b + 1] for x in (q, k, v)), streaming, stride)
        for b in range(2)
    ]
    with torch.no_grad():
        for real in counts.tolist():
            length = max(1, *real)
            pieces = [torch.stack([x[b, :, done[b] : done[b] + length] for b in range(2)]) for x in (q, k, v)]
            mask = torch.arange(length) < torch.tensor(real)[:, None]
            more = {} if stride is None else {"stride": stride}
            mixed, state = state.advance(*pieces, streaming, mask=mask, **more)
            for b, count in enumerate(real):
                torch.testing.assert_close(mixed[b, :, :count], whole[b][0, :, done[b] : done[b] + count])
                done[b] += count
    assert state.position.tolist() == done


def test_steps_carry_gradients() -> None:
    streaming = Streaming(cache_size=7, sinks=2, rope_base=50.0)
    leaves = [x.requires_grad_() for x in streams()]
    state, found = empty_streaming_state(2, streaming, **SIZES), []
    for pieces in zip(*(x.split([13, 1, 1, 22], dim=2) for x in leaves), strict=True):
        mixed, state = state.advance(*pieces, streaming)
        found.append(mixed)
    ours = torch.autograd.grad(torch.cat(found, dim=2).square().sum(), leaves)
    expected = torch.autograd.grad(streaming_attention(*leaves, streaming).square().sum(), leaves)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="batch must be positive, got batch=0"):
        empty_streaming_state(0, Streaming(), **SIZES)
    with pytest.raises(ValueError, match="batch=2 and max_len=0"):
        empty_streaming_plus_state(2, Streaming(), **SIZES, max_len=0)
