"""CBAM's scores: the fused product equals two branches, and maxima share what is equal."""

from __future__ import annotations

import pytest
import torch

from regard.ops.cbam import channel_maxima, two_branch_scores, two_branch_scores_reference


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("channels", "hidden"), [(13, 5), (7, 1), (1, 4)])
def test_equals_the_branches(channels: int, hidden: int, bias: bool) -> None:
    shapes = [(3, channels), (3, channels), (hidden, channels), (channels, hidden)]
    shapes += [(hidden,), (channels,)] if bias else []
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    ours, theirs = two_branch_scores(*inputs), two_branch_scores_reference(*inputs)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), inputs), torch.autograd.grad((theirs * weights).sum(), inputs)
    )


def test_maxima_are_exact_and_wide() -> None:
    x = torch.randn(2, 3, 5, 7).bfloat16()
    maxima = channel_maxima(x)
    assert maxima.dtype == torch.float32
    assert torch.equal(maxima, x.float().flatten(2).max(dim=2).values)
    assert channel_maxima(x.double()).dtype == torch.float64


@pytest.mark.parametrize("space", [(7, 11), (1, 5), (1, 1)], ids=str)
def test_layouts_agree(space: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *space, dtype=torch.float64)
    last = x.contiguous(memory_format=torch.channels_last)
    found = []
    for tensor in (x.requires_grad_(), last.requires_grad_()):
        maxima = channel_maxima(tensor)
        found.append((maxima, *torch.autograd.grad((maxima * torch.arange(3.0)).sum(), tensor)))
    torch.testing.assert_close(found[0], found[1])


def test_equal_maxima_share_the_gradient() -> None:
    x = torch.zeros(1, 1, 4, requires_grad=True)
    channel_maxima(x).sum().backward()
    assert x.grad.flatten().tolist() == [0.25] * 4


def test_where_channels_lie_last_the_first_maximum_takes_it() -> None:
    x = torch.zeros(1, 2, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    channel_maxima(x).sum().backward()
    assert x.grad[0].flatten(1).tolist() == [[1.0] + [0.0] * 14] * 2
