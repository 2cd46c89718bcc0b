"""The state holds sinks in the slots of their tokens, grows with its cache, and knows where the prompt ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.layers.var_state import VARState, empty_var_state


def empty(max_len: int | None = None) -> VARState:
    return empty_var_state(2, num_kv_heads=1, head_dim=3, max_len=max_len, like=torch.zeros(1))


def some(tokens: int) -> Tensor:
    return torch.randn(2, 1, tokens, 3)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("max_len", [None, 90])
def test_sinks_stand_where_their_tokens_do(max_len: int | None, gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        state = empty(max_len)
        found = torch.rand(2, 60) < 0.3
        mask = torch.arange(60) < torch.tensor([[60], [41]])
        state = state.append(some(60), some(60), found, mask)
        assert state.position.tolist() == [60, 41]
        later = torch.rand(2, 25) < 0.3
        state = state.append(some(25), some(25), later, None)
        state = state.append(some(1), some(1), None, None)
    expected = [torch.cat((found[0], later[0])), torch.cat((found[1, :41], later[1]))]
    for row, wanted in enumerate(expected):
        marks = torch.zeros(state.sinks.shape[1], dtype=torch.bool)
        marks[: len(wanted)] = wanted
        assert torch.equal(state.sinks[row], marks)
    assert state.sinks.shape[1] == state.cache.keys.shape[2] >= 86
    assert state.read_sinks().shape[1] == state.searched == 85


def test_without_sinks_nothing_is_searched() -> None:
    state = empty().append(some(5), some(5), None, None)
    assert not state.sinks.any()
    assert state.read_sinks().shape == (2, 0)


def test_max_len_is_kept() -> None:
    with pytest.raises(ValueError, match=r"room for max_len=4 tokens, 5 are needed"):
        empty(4).append(some(5), some(5), None, None)
