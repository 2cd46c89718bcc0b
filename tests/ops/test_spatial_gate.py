from __future__ import annotations

import pytest
import torch

from regard.ops.spatial_gate import channel_summary, scale_positions


@pytest.mark.parametrize("space", [(7,), (3, 5), (2, 3, 5)])
def test_the_summary_is_mean_and_maximum_of_every_position(space: tuple[int, ...]) -> None:
    x = torch.randn(2, 11, *space, dtype=torch.float64)
    found = channel_summary(x).flatten(2)
    for row in range(2):
        for place, values in enumerate(x[row].flatten(1).T.tolist()):
            assert found[row, 0, place].item() == pytest.approx(sum(values) / 11)
            assert found[row, 1, place].item() == max(values)


@pytest.mark.parametrize("maps", [1, 5])
@pytest.mark.parametrize("residual", [False, True])
def test_positions_are_scaled_and_gradients_are_right(maps: int, residual: bool) -> None:
    x = torch.randn(2, 5, 3, 7, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(2, maps, 3, 7, dtype=torch.float64, requires_grad=True)
    gate = 1 / (1 + (-scores).exp())
    torch.testing.assert_close(scale_positions(x, scores, residual=residual), x * (gate + (1 if residual else 0)))
    assert torch.autograd.gradcheck(lambda *each: scale_positions(*each, residual=residual), (x, scores))
