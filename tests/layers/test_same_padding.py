"""TensorFlow's SAME padding against sums over taps."""

from __future__ import annotations

import pytest
import torch

from regard.layers.same_padding import SameAvgPool2d, SameConv2d, same_padding


@pytest.mark.parametrize(
    ("length", "kernel_size", "stride", "expected"),
    [
        (8, 3, 1, (1, 1)),
        (8, 3, 2, (0, 1)),
        (7, 3, 2, (1, 1)),
        (1, 3, 2, (1, 1)),
        (2, 3, 2, (0, 1)),
        (5, 2, 2, (0, 1)),
        (9, 1, 4, (0, 0)),
        (7, 4, 1, (1, 2)),
    ],
)
def test_the_odd_position_is_at_the_far_end(
    length: int, kernel_size: int, stride: int, expected: tuple[int, int]
) -> None:
    assert same_padding(length, kernel_size=kernel_size, stride=stride) == expected


def by_loop(conv: SameConv2d, x: torch.Tensor) -> torch.Tensor:
    """Output by output: the sum over the taps that fall on the map."""
    step, taps = conv.stride[0], conv.kernel_size[0]
    height, width = x.shape[2:]
    top, left = (same_padding(length, kernel_size=taps, stride=step)[0] for length in (height, width))
    y = x.new_zeros(x.shape[0], conv.out_channels, -(-height // step), -(-width // step))
    per_group = conv.out_channels // conv.groups
    inputs = conv.in_channels // conv.groups
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            for channel in range(conv.out_channels):
                first = channel // per_group * inputs
                total = conv.bias[channel].expand(x.shape[0])
                for dy in range(taps):
                    for dx in range(taps):
                        at_y, at_x = row * step - top + dy, column * step - left + dx
                        if 0 <= at_y < height and 0 <= at_x < width:
                            seen = x[:, first : first + inputs, at_y, at_x]
                            total = total + seen @ conv.weight[channel, :, dy, dx]
                y[:, channel, row, column] = total
    return y


@pytest.mark.parametrize("space", [(6, 5), (1, 4), (1, 1)])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_convolution_is_a_sum_over_taps(space: tuple[int, int], stride: int, groups: int) -> None:
    conv = SameConv2d(4, 6, 3, stride=stride, groups=groups).double()
    x = torch.randn(2, 4, *space, dtype=torch.float64, requires_grad=True)
    y = conv(x)
    expected = by_loop(conv, x)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    leaves = (x, *conv.parameters())
    ours = torch.autograd.grad((y * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), leaves))


@pytest.mark.parametrize("space", [(6, 5), (7, 2), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_means_are_over_what_is_there(space: tuple[int, int], stride: int) -> None:
    x = torch.randn(2, 3, *space, dtype=torch.float64)
    y = SameAvgPool2d(stride)(x)
    for row in range(y.shape[2]):
        top = row * stride - same_padding(space[0], kernel_size=stride, stride=stride)[0]
        for column in range(y.shape[3]):
            left = column * stride - same_padding(space[1], kernel_size=stride, stride=stride)[0]
            seen = x[:, :, max(top, 0) : top + stride, max(left, 0) : left + stride]
            torch.testing.assert_close(y[:, :, row, column], seen.mean(dim=(2, 3)))


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="kernel_size and stride must be positive, got 0 and 1"):
        SameConv2d(2, 2, 0)
    with pytest.raises(ValueError, match="kernel_size and stride must be positive, got 3 and 0"):
        SameConv2d(2, 2, 3, stride=0)
    with pytest.raises(ValueError, match="stride must be positive, got 0"):
        SameAvgPool2d(0)
