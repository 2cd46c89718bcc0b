"""Convolutions with batch norms: the formula, and folding, which changes nothing in evaluation."""

from __future__ import annotations

import backbones
import pytest
import torch
from torch import nn

from regard.layers import conv_norm
from regard.layers.conv_norm import ConvNorm, NormLinear, PointwiseConv, ResidualDepthwise, fold_norms


def normed(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Channel by channel, with the running statistics."""
    channels = []
    for channel in range(x.shape[1]):
        centred = x[:, channel] - norm.running_mean[channel]
        scaled = centred / (norm.running_var[channel] + norm.eps) ** 0.5
        channels.append(scaled * norm.weight[channel] + norm.bias[channel])
    return torch.stack(channels, dim=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 5, "groups": 6},
        {"kernel_size": 3, "stride": 2, "groups": 3},
    ],
)
def test_is_a_convolution_then_a_norm_and_folds(options: dict[str, int]) -> None:
    layer = backbones.randomised(ConvNorm(6, 12, **options)).double().eval()
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    convolved = nn.functional.conv2d(
        x,
        layer.conv.weight,
        stride=options.get("stride", 1),
        padding=options.get("kernel_size", 1) // 2,
        groups=options.get("groups", 1),
    )
    torch.testing.assert_close(layer(x), normed(layer.norm, convolved))
    folded = layer.folded()
    assert isinstance(folded, nn.Conv2d)
    torch.testing.assert_close(folded(x), layer(x))
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_shortcut_is_one_in_the_middle(size: int) -> None:
    layer = backbones.randomised(ResidualDepthwise(7, kernel_size=size, drop_path=0.3)).double().eval()
    x = torch.randn(2, 7, 4, 9, dtype=torch.float64)
    expected = x + normed(layer.branch.norm, layer.branch.conv(x))
    torch.testing.assert_close(layer(x), expected)
    folded = layer.folded()
    torch.testing.assert_close(folded(x), expected)
    without = layer.branch.folded()
    added = torch.zeros_like(folded.weight)
    added[:, :, size // 2, size // 2] = 1
    torch.testing.assert_close(folded.weight - without.weight, added)


def test_a_linear_map_takes_the_norm_before_it() -> None:
    layer = backbones.randomised(NormLinear(7, 3)).double().eval()
    x = torch.randn(5, 7, dtype=torch.float64)
    norm = layer.norm
    inner = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(layer(x), inner @ layer.linear.weight.T + layer.linear.bias)
    folded = layer.folded()
    assert isinstance(folded, nn.Linear)
    torch.testing.assert_close(folded(x), layer(x))


def test_pointwise_convolutions_are_products_of_matrices() -> None:
    layer = PointwiseConv(6, 5, bias=True).double()
    x = torch.randn(2, 6, 7, 3, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(y)
    leaves = (x, layer.weight, layer.bias)
    ours = torch.autograd.grad((y * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), leaves))


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "stride": 2}, {"kernel_size": 3, "groups": 4}])
def test_large_maps_fold_in_every_call(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = backbones.randomised(ConvNorm(4, 8, **options)).double().eval()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(layer(x))
    leaves = (x, *layer.parameters())
    found = []
    for smallest in (1, 10**9):
        monkeypatch.setattr(conv_norm, "SMALLEST_FOLDED", smallest)
        monkeypatch.setattr(conv_norm, "FOLDED_PER_WEIGHT", 0)
        assert layer._folds(x) is (smallest == 1)
        y = layer(x)
        found.append((y, *torch.autograd.grad((y * weights).sum(), leaves)))
    torch.testing.assert_close(*found)
    monkeypatch.setattr(conv_norm, "SMALLEST_FOLDED", 1)
    assert not layer.train()._folds(x)
    before = layer.norm.running_mean.clone()
    layer(x)
    assert not torch.equal(layer.norm.running_mean, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_keeps_the_type_and_draws_no_random_numbers(dtype: torch.dtype) -> None:
    layer = ConvNorm(3, 8, kernel_size=3).to(dtype)
    before = torch.get_rng_state()
    folded = layer.folded()
    assert folded.weight.dtype == folded.bias.dtype == dtype
    assert torch.equal(torch.get_rng_state(), before)


def test_folds_wherever_they_are() -> None:
    layers = nn.Sequential(ConvNorm(3, 8), nn.ModuleList([ResidualDepthwise(8)]), nn.Sequential(NormLinear(8, 2)))
    layers = backbones.randomised(layers)
    fold_norms(layers)
    kinds = (nn.Conv2d, nn.Conv2d, nn.Linear)
    parts = [part for part in layers.modules() if not any(part.children())]
    assert all(isinstance(part, kind) for part, kind in zip(parts, kinds, strict=True))


def test_the_sum_leaves_the_input_and_gradients_as_they_are() -> None:
    layer = backbones.randomised(ResidualDepthwise(3, drop_path=0.5)).double().train()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    kept = x.detach().clone()
    torch.manual_seed(3)
    weights = torch.randn_like(x)
    leaves = (x, *layer.parameters())
    torch.manual_seed(4)
    ours = torch.autograd.grad((layer(x) * weights).sum(), leaves)
    torch.manual_seed(4)
    theirs = torch.autograd.grad(((x + layer.drop_path(layer.branch(x))) * weights).sum(), leaves)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(x.detach(), kept)


def test_scales_start_where_asked_and_kernels_are_odd() -> None:
    assert (ConvNorm(3, 5, initial_scale=0.0).norm.weight == 0).all()
    assert (ResidualDepthwise(3).branch.norm.weight == 1).all()
    for build in (lambda: ConvNorm(2, 2, kernel_size=4), lambda: ResidualDepthwise(2, kernel_size=4)):
        with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
            build()
