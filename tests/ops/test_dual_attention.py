"""Position and channel attention against loops over positions and channels."""

from __future__ import annotations

import pytest
import torch

from regard.ops.dual_attention import (
    FEW,
    Orientation,
    channel_mixing,
    channel_weights,
    position_attention,
    position_weights,
)


def by_queries(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Query by query, with exponentials written out."""
    rows = []
    for row in range(q.shape[0]):
        mixed = []
        for query in q[row]:
            powers = (k[row] @ query).exp()
            mixed.append((powers[:, None] * v[row]).sum(dim=0) / powers.sum())
        rows.append(torch.stack(mixed))
    return torch.stack(rows)


@pytest.mark.parametrize(("positions", "width", "channels"), [(1, 1, 3), (13, 2, 11), (FEW, 3, 5), (263, 2, 17)])
def test_positions_are_a_loop_over_queries(positions: int, width: int, channels: int) -> None:
    q, k = torch.randn(2, 2, positions, width, dtype=torch.float64)
    v = torch.randn(2, positions, channels, dtype=torch.float64)
    torch.testing.assert_close(position_attention(q, k, v), by_queries(q, k, v))
    torch.testing.assert_close(position_weights(q, k) @ v, by_queries(q, k, v))


@pytest.mark.parametrize("positions", [13, 263])
def test_gradients_are_those_of_the_loop(positions: int) -> None:
    leaves = [torch.randn(2, positions, width, dtype=torch.float64, requires_grad=True) for width in (3, 3, 7)]
    weights = torch.randn(2, positions, 7, dtype=torch.float64)
    ours = torch.autograd.grad((position_attention(*leaves) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_queries(*leaves) * weights).sum(), leaves))


def test_values_may_be_narrower_than_queries() -> None:
    q, k = torch.randn(2, 1, 269, 5, dtype=torch.float64)
    v = torch.randn(1, 269, 2, dtype=torch.float64)
    torch.testing.assert_close(position_attention(q, k, v), by_queries(q, k, v))


def by_channels(x: torch.Tensor, *, max_subtraction: bool, over: Orientation) -> torch.Tensor:
    """Channel by channel: what each gives or takes."""
    y = torch.zeros_like(x)
    channels = x.shape[1]
    for row in range(x.shape[0]):
        gram = [[float((x[row, i] * x[row, j]).sum()) for j in range(channels)] for i in range(channels)]
        for i in range(channels):
            scores = torch.tensor(gram[i], dtype=x.dtype)
            scores = scores.max() - scores if max_subtraction else scores
            shares = scores.exp() / scores.exp().sum()
            for j in range(channels):
                if over == "inputs":
                    y[row, i] += shares[j] * x[row, j]
                else:
                    y[row, j] += shares[j] * x[row, i]
    return y


@pytest.mark.parametrize("max_subtraction", [False, True])
@pytest.mark.parametrize("over", ["outputs", "inputs"])
def test_channels_are_a_loop(max_subtraction: bool, over: Orientation) -> None:
    x = 0.3 * torch.randn(2, 7, 13, dtype=torch.float64)
    expected = by_channels(x, max_subtraction=max_subtraction, over=over)
    torch.testing.assert_close(channel_mixing(x, max_subtraction=max_subtraction, normalised_over=over), expected)


def test_shares_sum_to_one_where_they_should() -> None:
    x = torch.randn(2, 7, 13)
    given = channel_weights(x, max_subtraction=False, normalised_over="outputs").sum(dim=1)
    taken = channel_weights(x, max_subtraction=False, normalised_over="inputs").sum(dim=2)
    torch.testing.assert_close(given, torch.ones(2, 7))
    torch.testing.assert_close(taken, torch.ones(2, 7))


def test_gram_matrices_of_narrow_types_are_summed_in_float32() -> None:
    x = torch.randn(1, 5, 9973).half()
    shown = channel_weights(x, max_subtraction=True, normalised_over="inputs")
    assert shown.dtype == torch.float32
    assert shown.isfinite().all()
