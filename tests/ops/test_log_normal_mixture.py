"""Log-normal mixtures against PyTorch's distributions, numeric integration and samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import LogNormal

from regard.ops.log_normal_mixture import log_normal_mixture_log_prob, log_normal_mixture_mean


def parameters(*batch: int, components: int = 3) -> list[torch.Tensor]:
    shape = (*batch, components)
    weights = torch.randn(shape, dtype=torch.float64).log_softmax(dim=-1)
    return [weights, torch.randn(shape, dtype=torch.float64), 0.3 * torch.randn(shape, dtype=torch.float64)]


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-1.3, 0.7)])
def test_density_and_mean_are_those_of_pytorchs_distributions(shift: float, scale: float) -> None:
    log_weights, means, log_scales = parameters(5)
    times = torch.rand(5, dtype=torch.float64) + 0.05
    density = log_normal_mixture_log_prob(times, log_weights, means, log_scales, shift=shift, scale=scale)
    mean = log_normal_mixture_mean(log_weights, means, log_scales, shift=shift, scale=scale)
    for place in range(5):
        total, expected = 0.0, 0.0
        for k in range(3):
            weight = math.exp(log_weights[place, k])
            part = LogNormal(shift + scale * means[place, k], scale * log_scales[place, k].exp())
            total += weight * math.exp(part.log_prob(times[place]))
            expected += weight * float(part.mean)
        assert float(density[place]) == pytest.approx(math.log(total), rel=1e-10)
        assert float(mean[place]) == pytest.approx(expected, rel=1e-10)


def test_density_integrates_to_one_and_to_the_mean() -> None:
    log_weights, means, log_scales = parameters()
    logs = torch.linspace(-14, 14, 20_001, dtype=torch.float64)
    times = logs.exp()
    options = {"shift": 0.4, "scale": 1.2}
    density = log_normal_mixture_log_prob(times, log_weights, means, log_scales, **options).exp()
    assert float(torch.trapezoid(density, times)) == pytest.approx(1, abs=1e-4)
    mean = log_normal_mixture_mean(log_weights, means, log_scales, **options)
    assert float(torch.trapezoid(density * times, times)) == pytest.approx(float(mean), rel=1e-3)


def test_gradcheck() -> None:
    leaves = [torch.rand(4, dtype=torch.float64) + 0.1, *parameters(4)]
    assert gradcheck(log_normal_mixture_log_prob, tuple(leaf.requires_grad_() for leaf in leaves))
    assert gradcheck(log_normal_mixture_mean, tuple(leaves[1:]))


@pytest.mark.parametrize("time", [1e-30, 1e30])
def test_far_away_times_stay_finite(time: float) -> None:
    leaves = [part.float().requires_grad_() for part in parameters(2)]
    density = log_normal_mixture_log_prob(torch.full((2,), time), *leaves)
    gradients = torch.autograd.grad(density.sum(), leaves)
    assert torch.isfinite(density).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_narrow_types_are_computed_in_float32() -> None:
    leaves = [part.bfloat16() for part in parameters(6)]
    times = (torch.rand(6) + 0.1).bfloat16()
    found = log_normal_mixture_log_prob(times, *leaves)
    assert found.dtype == torch.float32
    expected = log_normal_mixture_log_prob(times.double(), *(leaf.double() for leaf in leaves))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
