"""The state of Transformer-XL-like attention: what convolutions still need, row by row."""

from __future__ import annotations

import torch

from regard.layers.xl_state import empty_xl_state, later_past


def test_the_last_real_tokens_are_kept() -> None:
    past, new = torch.randn(3, 2, 1, 4), torch.randn(3, 3, 1, 4)
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    found = later_past(past, new, mask)
    assert torch.equal(found[0], new[0, 1:])
    assert torch.equal(found[1], torch.stack((past[1, 1], new[1, 0])))
    assert torch.equal(found[2], past[2])
    assert torch.equal(later_past(past, new, None), new[:, 1:])
    assert torch.equal(later_past(past, new[:, :1], None), torch.cat((past[:, 1:], new[:, :1]), dim=1))


def test_without_convolutions_nothing_is_kept() -> None:
    state = empty_xl_state(
        2, num_heads=3, head_dim=4, past=0, past_of_queries=0, max_len=7, like=torch.zeros(1, dtype=torch.float64)
    )
    assert state.past_keys.numel() == state.past_queries.numel() == 0
    assert later_past(state.past_keys, torch.randn(2, 5, 3, 4), None) is state.past_keys
    assert state.cache.keys.dtype == torch.float64
    assert state.nbytes == 2 * (2 * 7 * 3 * 4 * 8) + 2 * 2 * 8
