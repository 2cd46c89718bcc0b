"""Convolutions behind projections to heads: shared filters, filters of each head, PyTorch's start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.layers.head_convolution import HeadConvolution


@pytest.mark.parametrize("shared", [True, False])
def test_it_is_conv1d_cut_to_the_past(shared: bool) -> None:
    ours = HeadConvolution(3, 5, shared=shared)
    channels = 5 if shared else 15
    theirs = nn.Conv1d(channels, channels, 3, padding=2, groups=channels)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 3, 5)
    rows = x.permute(0, 2, 3, 1).reshape((6, 5, 7) if shared else (2, 15, 7))
    expected = theirs(rows)[..., :-2].reshape(2, 3, 5, 7).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours(x), expected)


def test_it_goes_on_where_it_was() -> None:
    convolution, x = HeadConvolution(3, 5, shared=True), torch.randn(2, 7, 3, 5)
    torch.testing.assert_close(convolution(x[:, 4:], before=x[:, 2:4]), convolution(x)[:, 4:])


def test_it_starts_as_conv1d_does() -> None:
    convolution = HeadConvolution(1, 5000, shared=True)
    for parameter in convolution.parameters():
        size = parameter.detach().abs()
        assert float(size.max()) == pytest.approx(3**-0.5, rel=0.01)
        assert float(size.mean()) == pytest.approx(3**-0.5 / 2, rel=0.05)


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0 and 5"):
        HeadConvolution(0, 5, shared=True)
