"""Stochastic depth drops whole samples, keeps the mean, and is off in evaluation."""

from __future__ import annotations

import pytest
import torch

from regard.layers.drop_path import DropPath, linear_rates


def test_samples_are_dropped_as_a_whole_and_the_mean_is_kept() -> None:
    torch.manual_seed(0)
    y = DropPath(0.3).train()(torch.ones(4001, 2, 3))
    kept = y[:, 0, 0] != 0
    assert torch.equal(y != 0, kept[:, None, None].expand_as(y))
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.7))
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.03)


def test_nothing_is_dropped_in_evaluation_or_at_rate_0() -> None:
    x = torch.randn(5, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_rates_rise_linearly() -> None:
    assert linear_rates(0.2, 5) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert linear_rates(0.2, 1) == [0]


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_the_rate_is_a_probability(rate: float) -> None:
    with pytest.raises(ValueError, match="drop_path must be in"):
        DropPath(rate)
