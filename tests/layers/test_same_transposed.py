"""Transposed convolution with "same" padding against a loop over taps."""

from __future__ import annotations

import pytest
import torch

from regard.layers.same_transposed import SameConvTranspose3d


def by_loop(layer: SameConvTranspose3d, x: torch.Tensor) -> torch.Tensor:
    """Every position adds its taps; what lies before the map or behind n times the stride is dropped."""
    stride, taps = layer.stride[0], layer.kernel_size[0]
    before = max(taps - stride, 0) // 2
    sides = [side * stride for side in x.shape[2:]]
    y = torch.zeros(x.shape[0], layer.out_channels, *sides, dtype=x.dtype) + layer.bias[:, None, None, None]
    for place in torch.cartesian_prod(*(torch.arange(side) for side in x.shape[2:])).tolist():
        for tap in torch.cartesian_prod(*[torch.arange(taps)] * 3).tolist():
            i, j, k = (stride * p + t - before for p, t in zip(place, tap, strict=True))
            if 0 <= i < sides[0] and 0 <= j < sides[1] and 0 <= k < sides[2]:
                a, b, c = place
                kernel = layer.weight[:, :, tap[0], tap[1], tap[2]]
                y[:, :, i, j, k] = y[:, :, i, j, k] + x[:, :, a, b, c] @ kernel
    return y


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (3, 3), (3, 4), (3, 5), (2, 1), (1, 2), (4, 1)])
def test_is_a_loop_over_taps(kernel_size: int, stride: int) -> None:
    layer = SameConvTranspose3d(2, 3, kernel_size, stride=stride).double()
    x = torch.randn(2, 2, 2, 3, 1, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_loop(layer, x))


def test_what_nothing_reaches_is_the_bias() -> None:
    layer = SameConvTranspose3d(2, 3, stride=8)
    y = layer(torch.randn(1, 2, 2, 2, 2))
    assert y.shape == (1, 3, 16, 16, 16)
    assert torch.equal(y[0, :, :, :, 3:8], layer.bias[:, None, None, None].expand(3, 16, 16, 5))


def test_ill_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="positive, got 0 and 2"):
        SameConvTranspose3d(2, 3, 0)
    with pytest.raises(ValueError, match="positive, got 3 and 0"):
        SameConvTranspose3d(2, 3, stride=0)
    with pytest.raises(ValueError, match=r"output_size=\[9, 9, 9\]"):
        SameConvTranspose3d(2, 3)(torch.randn(1, 2, 4, 4, 4), output_size=[9, 9, 9])
