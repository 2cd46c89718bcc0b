"""Recycled attention as a layer: against softmax attention, its own map, and decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.recycled import RecycledAttention
from regard.mixers.sequence.softmax import SoftmaxAttention

SMALL: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "top_k": 6, "stride": 4}


def decoded(mixer: RecycledAttention, x: Tensor, chunks: list[int], **options: Any) -> Tensor:
    state, pieces = mixer.init_state(x.shape[0], **options), []
    with torch.no_grad():
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("rope_base", [None, 100.0])
@pytest.mark.parametrize("options", [{"top_k": 31}, {"stride": 1}, {"top_k": 31, "threshold": 0.9}], ids=str)
def test_room_for_everything_is_softmax_attention(options: dict[str, Any], rope_base: float | None) -> None:
    ours = RecycledAttention(24, rope_base=rope_base, **{**SMALL, **options})
    full = SoftmaxAttention(24, num_heads=4, num_kv_heads=2, causal=True, rope_base=rope_base)
    full.load_state_dict(ours.state_dict())
    x = torch.randn(2, 31, 24)
    torch.testing.assert_close(ours(x), full(x))
    torch.testing.assert_close(ours.attention_map(x), full.attention_map(x))
    for chunks in ([1] * 31, [13] + [1] * 18):
        torch.testing.assert_close(decoded(ours, x, chunks), full(x), rtol=1e-4, atol=1e-5)


def test_rows_see_as_many_keys_as_the_sizes_say() -> None:
    mixer = RecycledAttention(24, **SMALL)
    seen = (mixer.attention_map(torch.randn(2, 39, 24)) > 0).sum(dim=-1)
    expected = [i + 1 if i % 4 == 0 or i < 8 else 6 + i % 4 for i in range(39)]
    assert torch.equal(seen, torch.tensor(expected).expand(2, 4, -1))


def test_single_tokens_from_the_start_on_are_forward() -> None:
    mixer = RecycledAttention(24, rope_base=100.0, **SMALL)
    x = torch.randn(2, 39, 24)
    torch.testing.assert_close(decoded(mixer, x, [1] * 39), mixer(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded(mixer, x, [1] * 39, max_len=39), mixer(x), rtol=1e-4, atol=1e-5)


def test_a_prompt_is_attended_to_in_full() -> None:
    mixer = RecycledAttention(24, rope_base=100.0, **SMALL)
    full = SoftmaxAttention(24, num_heads=4, num_kv_heads=2, causal=True, rope_base=100.0)
    full.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 39, 24)
    found = decoded(mixer, x, [30] + [1] * 9)
    torch.testing.assert_close(found[:, :30], full(x)[:, :30])
    # the fourth and the eighth token after it are full steps, whose layer's input is given here
    close = (found - full(x)).abs().amax(dim=(0, 2)) < 1e-4
    assert close.tolist() == [True] * 30 + [False, False, False, True, False, False, False, True, False]


def test_similar_queries_go_on_recycling() -> None:
    x = torch.randn(2, 12, 24)
    x = torch.cat((x, x[:, -1:].expand(-1, 6, -1)), dim=1)
    for threshold, full_steps in ((0.99, False), (1.0, True)):
        mixer = RecycledAttention(24, **SMALL, threshold=threshold).double()
        state, found = mixer.init_state(2), []
        with torch.no_grad():
            _, state = mixer.step(x[:, :12].double(), state)
            for token in x[:, 12:].double().split(1, dim=1):
                _, state = mixer.step(1.1 * token + 1e-5 * torch.randn_like(token), state)
                found.append(state.was_full)
        assert bool((torch.stack(found) == full_steps).all())


def test_bfloat16_chooses_the_same_keys() -> None:
    narrow = RecycledAttention(24, rope_base=100.0, **SMALL).bfloat16()
    wide = RecycledAttention(24, rope_base=100.0, **SMALL)
    wide.load_state_dict(narrow.state_dict())
    x = torch.randn(2, 67, 24).bfloat16()
    with torch.no_grad():
        found, expected = narrow.attention_map(x) > 0, wide.attention_map(x.float()) > 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, or None for never, got 0"),
        ({"threshold": -2.0}, "between -1 and 1, got -2.0"),
        ({"num_kv_heads": 3}, "num_heads=4, got 3"),
        ({"causal": False}, "refuses causal=False: a token recycles what an earlier one chose from its past"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecycledAttention(24, **{**SMALL, **changed})
