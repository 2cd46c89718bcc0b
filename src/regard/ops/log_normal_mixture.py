"""Mixtures of log-normal distributions over positive numbers: density and mean.

Paper: "Intensity-Free Learning of Temporal Point Processes", Shchur et al., ICLR 2020,
https://arxiv.org/abs/1909.12127, equations 2 to 5. Computed in at least float32.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast

_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


@without_autocast
def log_normal_mixture_log_prob(
    times: Float[Tensor, "*batch"],
    log_weights: Float[Tensor, "*batch components"],
    means: Float[Tensor, "*batch components"],
    log_scales: Float[Tensor, "*batch components"],
    *,
    shift: float = 0.0,
    scale: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Logarithm of the density at `times`, where (ln t - shift) / scale is a mixture of normal distributions.

    Args:
        times: positive numbers.
        log_weights: logarithms of the components' probabilities, which sum to 1.
        means: of the components.
        log_scales: logarithms of the components' standard deviations.
        shift: mean of the logarithms of all times of a data set; 0 = as they are.
        scale: their standard deviation.
    """
    dtype = compute_dtype(times)
    log_times = times.to(dtype).log()
    z = (log_times - shift) / scale
    log_scales = log_scales.to(dtype)
    distance = (z[..., None] - means.to(dtype)) * torch.exp(-log_scales)
    components = log_weights.to(dtype) - 0.5 * distance.square() - log_scales - _HALF_LOG_2_PI
    return torch.logsumexp(components, dim=-1) - log_times - math.log(scale)


@without_autocast
def log_normal_mixture_mean(
    log_weights: Float[Tensor, "*batch components"],
    means: Float[Tensor, "*batch components"],
    log_scales: Float[Tensor, "*batch components"],
    *,
    shift: float = 0.0,
    scale: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """The expected time: sum_k w_k exp(shift + scale m_k + (scale s_k)^2 / 2); arguments as for the density."""
    dtype = compute_dtype(log_weights)
    variances = torch.exp(2 * log_scales.to(dtype)) * scale**2
    exponents = log_weights.to(dtype) + shift + scale * means.to(dtype) + 0.5 * variances
    return torch.logsumexp(exponents, dim=-1).exp()
