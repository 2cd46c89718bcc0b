"""The causal convolution against a sum over taps, and its memory of earlier rows."""

from __future__ import annotations

import pytest
import torch

from regard.layers.causal_conv2d import CausalConv2d


@torch.no_grad()
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 2)])
def test_output_is_the_sum_over_earlier_rows(kernel_size: int, dilation: int) -> None:
    conv = CausalConv2d(2, 3, kernel_size, dilation=dilation).double()
    x = torch.randn(1, 2, 7, 5, dtype=torch.float64)
    y = conv(x)
    side = (kernel_size - 1) * dilation // 2
    for out in range(3):
        for row in range(7):
            for column in range(5):
                total = float(conv.bias[out])
                for a in range(kernel_size):
                    for b in range(kernel_size):
                        above = row - (kernel_size - 1 - a) * dilation
                        beside = column + b * dilation - side
                        if above >= 0 and 0 <= beside < 5:
                            total += float(conv.weight[out, :, a, b] @ x[0, :, above, beside])
                assert float(y[0, out, row, column]) == pytest.approx(total)


def test_rows_before_carry_on() -> None:
    conv = CausalConv2d(2, 2, 3, dilation=2).double()
    x = torch.randn(2, 2, 11, 5, dtype=torch.float64)
    first, second = conv(x[:, :, :6]), conv(x[:, :, 6:], before=x[:, :, 2:6])
    torch.testing.assert_close(torch.cat((first, second), dim=2), conv(x))


def test_bfloat16_parameters_compute_in_float32() -> None:
    conv = CausalConv2d(2, 2, 3).bfloat16()
    assert conv(torch.randn(1, 2, 3, 4).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("sizes", "message"), [((0, 2, 3, 1), "in_channels=0"), ((2, 2, 4, 1), "got 4"), ((2, 2, 3, 0), "dilation=0")]
)
def test_ill_sizes_are_named(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalConv2d(*sizes[:3], dilation=sizes[3])
