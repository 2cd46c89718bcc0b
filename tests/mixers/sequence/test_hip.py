"""HiP attention against full attention, its own map, decoding by hand, and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.mixers.sequence.hip import HiPAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.hip import HiPSizes, hip_attention, hip_choice

SMALL: dict[str, Any] = {
    "num_heads": 4,
    "num_kv_heads": 2,
    "mask_k": 8,
    "block_q": 4,
    "block_k": 2,
    "window": 6,
    "sinks": 2,
    "refresh": 3,
}


@pytest.mark.parametrize("rope_base", [None, 100.0])
@pytest.mark.parametrize(("tokens", "mask_k", "window"), [(31, 28, 4), (31, 4, 40), (1, 2, 3)])
def test_a_budget_for_everything_is_softmax_attention(
    tokens: int, mask_k: int, window: int, rope_base: float | None
) -> None:
    options: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "rope_base": rope_base}
    ours = HiPAttention(24, mask_k=mask_k, window=window, refresh=2, **options)
    full = SoftmaxAttention(24, causal=True, **options)
    full.load_state_dict(ours.state_dict())
    x = torch.randn(2, tokens, 24)
    torch.testing.assert_close(ours(x), full(x))
    torch.testing.assert_close(ours.attention_map(x), full.attention_map(x))
    torch.testing.assert_close(decoded(ours, x, [1] * tokens), full(x), rtol=1e-4, atol=1e-5)


def decoded(mixer: HiPAttention, x: Tensor, chunks: list[int], **options: Any) -> Tensor:
    state, pieces = mixer.init_state(x.shape[0], **options), []
    with torch.no_grad():
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
    return torch.cat(pieces, dim=1)


def test_rows_see_as_many_keys_as_the_sizes_say() -> None:
    mixer = HiPAttention(24, **SMALL)
    seen = (mixer.attention_map(torch.randn(2, 67, 24)) > 0).sum(dim=-1)
    assert torch.equal(seen[0, 0, :6], torch.arange(1, 7))
    assert int(seen.max()) <= 8 + 6 + 2
    # every row of the last block sees the choice, and the first row sees the window beside it
    assert int(seen[..., 60:].min()) >= 6 + 8 - 3


@pytest.mark.parametrize("max_len", [None, 67])
def test_single_tokens_use_a_search_of_their_own_for_some_tokens(max_len: int | None) -> None:
    """Decoding restated: every third token searches, and the first; the others see what was found, sinks and window."""
    mixer = HiPAttention(24, rope_base=100.0, **SMALL).double()
    x = torch.randn(2, 67, 24, dtype=torch.float64)
    stepped = decoded(mixer, x, [40] + [1] * 27, max_len=max_len)
    q, k, v = mixer._project(x)
    sizes, expected = HiPSizes(mask_k=8, block_q=1, block_k=2, window=6 - 2, sinks=2), []
    for i in range(40, 67):
        if i == 40 or i % 3 == 0:
            chosen = hip_choice(q[:, :, i : i + 1], k[:, :, : i + 1], sizes, first=i).starts
        rows = torch.zeros(2, 4, 1, 6, dtype=torch.float64)
        for b in range(2):
            for h in range(4):
                keys = {start + j for start in chosen[b, h, 0].tolist() for j in range(2)}
                keys |= {0, 1} | set(range(i - 5, i + 1))
                kept = sorted(keys)
                weights = (q[b, h, i] @ k[b, h // 2, kept].T * 6**-0.5).softmax(dim=-1)
                rows[b, h, 0] = weights @ v[b, h // 2, kept]
        expected.append(mixer.out(rows, x))
    torch.testing.assert_close(stepped[:, 40:], torch.cat(expected, dim=1))
    torch.testing.assert_close(stepped[:, :40], mixer(x[:, :40]))


def test_prefill_in_whole_blocks_equals_forward() -> None:
    mixer = HiPAttention(24, rope_base=100.0, **SMALL)
    x = torch.randn(2, 67, 24)
    torch.testing.assert_close(decoded(mixer, x, [4, 32, 8, 23]), mixer(x), rtol=1e-4, atol=1e-5)


def test_padding_has_no_influence_on_decoding() -> None:
    mixer = HiPAttention(24, rope_base=100.0, **SMALL)
    x, mask = torch.randn(1, 50, 24), torch.rand(1, 50) < 0.7
    mask[:, :30] = True
    mask[:, 3:9] = False
    alone = x[mask][None]
    prompt = int(mask[:, :30].sum())
    expected = decoded(mixer, alone, [prompt] + [1] * (alone.shape[1] - prompt))
    state, pieces = mixer.init_state(1), []
    with torch.no_grad():
        for piece, real in zip(x.split([30] + [1] * 20, dim=1), mask.split([30] + [1] * 20, dim=1), strict=True):
            y, state = mixer.step(piece, state, mask=real)
            assert bool(y.isfinite().all())
            pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1)[mask][None], expected, rtol=1e-4, atol=1e-5)


def test_a_query_that_is_not_a_number_spoils_its_own_row_alone() -> None:
    sizes = HiPSizes(mask_k=8, block_q=4, block_k=2, window=6, sinks=2)
    q, k, v = (torch.randn(1, 2, 67, 6) for _ in range(3))
    q[:, :, 41] = torch.nan
    y = hip_attention(q, k, v, sizes)
    finite = y.isfinite().all(dim=-1)
    assert not bool(finite[:, :, 41].any())
    assert bool(finite[:, :, torch.arange(67) != 41].all())


def test_gradients_flow_through_the_attention_alone() -> None:
    mixer = HiPAttention(24, **SMALL).double()
    x = torch.randn(1, 43, 24, dtype=torch.float64, requires_grad=True)
    ours = torch.autograd.grad(mixer(x).square().sum(), x)[0]
    weights = mixer.attention_map(x)
    dense = mixer.out(weights @ mixer.values(x), x)
    torch.testing.assert_close(torch.autograd.grad(dense.square().sum(), x)[0], ours)


def test_defaults_are_those_of_the_serving_code() -> None:
    mixer = regard.create("hip", dim=16, num_heads=2)
    assert mixer.sizes == HiPSizes(mask_k=512, block_q=64, block_k=2, window=256, sinks=16)
    assert mixer.causal


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"refresh": 6}, r"refresh must be between 1 and window - block_k \+ 1 = 5, got 6"),
        ({"mask_k": 7}, r"mask_k must be a positive multiple of block_k=2, got 7"),
        ({"causal": False}, r"refuses causal=False: the search is defined over a query's past alone"),
        ({"sinks": -1}, r"sinks at least 0, got window=6 and sinks=-1"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiPAttention(24, **{**SMALL, **changed})
