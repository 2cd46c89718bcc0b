"""Gates on channels against their formulas by loops, and the precision of pooling."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from regard.ops.channel_gates import (
    adaptive_kernel_size,
    channel_means,
    check_kernel_size,
    dense_scores,
    gate_of,
    grouped_scores,
    scale_channels,
    scale_channels_and_add,
    shared_stencil,
    shared_stencil_reference,
    unshared_stencil,
    unshared_stencil_reference,
)


def stencil_by_loops(pooled: Tensor, taps: list[list[float]]) -> Tensor:
    """Row by row, channel by channel, tap by tap; `taps` holds a list for each channel."""
    batch, channels = pooled.shape
    scores = torch.zeros_like(pooled)
    for row in range(batch):
        for channel in range(channels):
            middle = (len(taps[channel]) - 1) // 2
            for place, weight in enumerate(taps[channel]):
                neighbour = channel + place - middle
                if 0 <= neighbour < channels:
                    scores[row, channel] += weight * pooled[row, neighbour]
    return scores


@pytest.mark.parametrize(
    ("channels", "size"),
    [(1, 1), (2, 1), (8, 3), (16, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_adaptive_size_is_the_papers(channels: int, size: int) -> None:
    assert adaptive_kernel_size(channels) == size


def test_adaptive_size_follows_gamma_and_b() -> None:
    # log2(512) = 9: (9 + 3) / 1.5 = 8, made odd; |(9 - 20) / 2| = 5.5
    assert adaptive_kernel_size(512, gamma=1.5, b=3) == 9
    assert adaptive_kernel_size(512, gamma=2, b=-20) == 5
    for channels in range(1, 200):
        assert adaptive_kernel_size(channels) % 2 == 1
        check_kernel_size(adaptive_kernel_size(channels), channels)


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="must be odd, got 4: try 5"):
        check_kernel_size(4, 16)
    with pytest.raises(ValueError, match=re.escape("2 * channels - 1 = 5, got 7")):
        check_kernel_size(7, 3)
    with pytest.raises(ValueError, match="between 1 and"):
        check_kernel_size(-1, 3)
    with pytest.raises(ValueError, match="channels must be positive, got 0"):
        adaptive_kernel_size(0)
    with pytest.raises(ValueError, match="gamma must differ from 0"):
        adaptive_kernel_size(16, gamma=0)


@pytest.mark.parametrize(("channels", "size"), [(13, 1), (13, 3), (17, 5), (7, 13), (1, 1)])
def test_shared_stencil_is_the_formula(channels: int, size: int) -> None:
    pooled, taps = torch.randn(3, channels, dtype=torch.float64), torch.randn(size, dtype=torch.float64)
    expected = stencil_by_loops(pooled, [taps.tolist()] * channels)
    torch.testing.assert_close(shared_stencil(pooled, taps), expected)
    torch.testing.assert_close(shared_stencil_reference(pooled, taps), expected)


@pytest.mark.parametrize(("channels", "size"), [(13, 1), (13, 3), (17, 5), (7, 13), (1, 1)])
def test_unshared_stencil_is_the_formula(channels: int, size: int) -> None:
    pooled, taps = torch.randn(3, channels, dtype=torch.float64), torch.randn(channels, size, dtype=torch.float64)
    expected = stencil_by_loops(pooled, taps.tolist())
    torch.testing.assert_close(unshared_stencil(pooled, taps), expected)
    torch.testing.assert_close(unshared_stencil_reference(pooled, taps), expected)


def test_stencils_agree_in_gradients_with_the_references() -> None:
    pooled = torch.randn(2, 11, dtype=torch.float64, requires_grad=True)
    shared = torch.randn(5, dtype=torch.float64, requires_grad=True)
    unshared = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 11, dtype=torch.float64)
    for fast, plain, taps in (
        (shared_stencil, shared_stencil_reference, shared),
        (unshared_stencil, unshared_stencil_reference, unshared),
    ):
        ours = torch.autograd.grad((fast(pooled, taps) * weights).sum(), (pooled, taps))
        expected = torch.autograd.grad((plain(pooled, taps) * weights).sum(), (pooled, taps))
        torch.testing.assert_close(ours, expected)
        assert gradcheck(fast, (pooled, taps))


def test_one_image_does_not_reach_into_the_next() -> None:
    pooled, taps = torch.zeros(3, 7), torch.ones(5)
    pooled[1] = 1
    scores = shared_stencil(pooled, taps)
    assert scores[0].abs().sum() == scores[2].abs().sum() == 0
    assert scores[1].tolist() == [3, 4, 5, 5, 5, 4, 3]


def test_grouped_scores_are_a_block_diagonal_matrix() -> None:
    pooled, weight = torch.randn(3, 15, dtype=torch.float64), torch.randn(5, 3, 3, dtype=torch.float64)
    expected = pooled @ torch.block_diag(*weight).t()
    torch.testing.assert_close(grouped_scores(pooled, weight), expected)


def test_dense_scores_are_a_matrix_with_bias() -> None:
    pooled, weight, bias = torch.randn(3, 7), torch.randn(5, 7), torch.randn(5)
    torch.testing.assert_close(dense_scores(pooled, weight, bias), pooled @ weight.t() + bias)


@pytest.mark.parametrize("space", [(19,), (5, 7), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_pooling_and_scaling_by_loops(space: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, *space).to(dtype)
    scores, shortcut = torch.randn(2, 3).to(torch.promote_types(dtype, torch.float32)), torch.randn(x.shape).to(dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 8e-3)
    means, scaled = channel_means(x), scale_channels(x, scores)
    added = scale_channels_and_add(x, scores, shortcut)
    assert means.dtype == torch.promote_types(dtype, torch.float32)
    assert scaled.dtype == added.dtype == dtype
    assert gate_of(x, scores).shape == (2, 3, *[1] * len(space))
    for row in range(2):
        for channel in range(3):
            values = x[row, channel].flatten().tolist()
            assert float(means[row, channel]) == pytest.approx(sum(values) / len(values), abs=tolerance)
            gate = 1 / (1 + math.exp(-float(scores[row, channel])))
            for place, value in enumerate(values):
                other = float(shortcut[row, channel].flatten()[place])
                assert float(scaled[row, channel].flatten()[place]) == pytest.approx(gate * value, abs=4 * tolerance)
                assert float(added[row, channel].flatten()[place]) == pytest.approx(
                    gate * value + other, abs=8 * tolerance
                )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_summed_in_float32(dtype: torch.dtype, layout: torch.memory_format) -> None:
    # 3,136 ones end at 256 in bfloat16; 3,136 times 100 is beyond float16
    x = torch.full((2, 3, 56, 56), 100.0, dtype=dtype).contiguous(memory_format=layout)
    x[:, 1] = 1
    expected = torch.tensor([[100.0, 1.0, 100.0]] * 2)
    torch.testing.assert_close(channel_means(x), expected, rtol=2**-8, atol=0)


def test_pooling_is_accurate_in_bfloat16() -> None:
    x = (torch.randn(2, 5, 61, 67) + torch.linspace(-1, 1, 5)[:, None, None]).bfloat16()
    exact = x.double().mean(dim=(2, 3))
    error = (channel_means(x).double() - exact).abs() / exact.abs()
    assert float(error.max()) < 2**-8


def test_extreme_values_stay_finite() -> None:
    x = torch.full((1, 3, 5, 7), 1e30)
    scores = torch.tensor([[1e30, -1e30, 0.0]])
    scaled = scale_channels(x, scores)
    assert scaled[0, :, 0, 0].tolist() == pytest.approx([1e30, 0, 5e29])


def test_autocast_leaves_scores_in_float32() -> None:
    pooled, taps, weight = torch.randn(2, 11), torch.randn(3), torch.randn(11, 11)
    expected = shared_stencil(pooled, taps), unshared_stencil(pooled, weight[:, :3]), dense_scores(pooled, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = shared_stencil(pooled, taps), unshared_stencil(pooled, weight[:, :3]), dense_scores(pooled, weight)
    torch.testing.assert_close(actual, expected)
