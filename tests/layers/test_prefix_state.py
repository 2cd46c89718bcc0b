"""The state of prefix softmax: its size, and both of its ways to go on."""

from __future__ import annotations

import pytest
import torch

from regard.layers.prefix_state import empty_prefix_state
from regard.ops.prefix_softmax import prefix_softmax_reference


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 4), (torch.float64, 8)])
def test_size_does_not_grow(dtype: torch.dtype, size: int) -> None:
    state = empty_prefix_state(2, num_heads=3, value_dim=7, like=torch.zeros(1, dtype=dtype))
    counter = 2 * 8
    wanted = 2 * (3 + 3 + 21) * size + counter
    assert state.nbytes == wanted
    wide = state.weighted.dtype
    for _ in range(3):
        _, state = state.extend(torch.randn(2, 3, 11).to(wide), torch.randn(2, 3, 11, 7).to(wide), None)
        _, state = state.advance(torch.randn(2, 3, 1).to(wide), torch.randn(2, 3, 7).to(wide), None)
        assert state.nbytes == wanted
    assert state.position.tolist() == [36, 36]


def test_advance_and_extend_agree() -> None:
    scores, values = torch.randn(2, 3, 17, dtype=torch.float64), torch.randn(2, 3, 17, 5, dtype=torch.float64)
    state = empty_prefix_state(2, num_heads=3, value_dim=5, like=values)
    first, state = state.extend(scores[:, :, :13], values[:, :, :13], None)
    outputs = [first]
    for token in range(13, 17):
        y, state = state.advance(scores[:, :, token, None], values[:, :, token], None)
        outputs.append(y[:, :, None])
    torch.testing.assert_close(torch.cat(outputs, dim=2), prefix_softmax_reference(scores, values))


def test_time_stands_still_at_masked_tokens() -> None:
    scores, values = torch.randn(2, 3, 4), torch.randn(2, 3, 4, 5)
    state = empty_prefix_state(2, num_heads=3, value_dim=5, like=values)
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    _, state = state.extend(scores, values, mask)
    _, after = state.advance(scores[:, :, :1], values[:, :, 0], torch.tensor([[False], [False]]))
    assert after.position.tolist() == [2, 0]
    assert torch.equal(after.weighted, state.weighted)
    with pytest.raises(ValueError, match="batch must be positive, got 0"):
        empty_prefix_state(0, num_heads=3, value_dim=5, like=values)
