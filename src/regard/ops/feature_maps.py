"""Feature maps of linear attention: non-negative functions whose products stand in for exp(q . k).

Papers: "The Hedgehog & the Porcupine", Zhang et al., ICLR 2024, https://arxiv.org/abs/2402.04347, sections 3 and 4
(softmax, exponential and Taylor maps); "Transformers are RNNs", Katharopoulos et al., ICML 2020,
https://arxiv.org/abs/2006.16236, equation 7 (1 + elu); "Finetuning Pretrained Transformers into RNNs", Kasai et al.,
EMNLP 2021, https://arxiv.org/abs/2103.13076 (relu). Compared with HazyResearch/lolcats@375df84f
`src/model/feature_map.py`. Features are computed in at least float32 and returned so.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import elu

from regard.ops.precision import compute_dtype, without_autocast

FEATURE_EPS = 1e-12
"""Smallest feature of the learned maps, as in the compared code; it stops the gradient of smaller ones."""


@without_autocast
def project_per_head(
    x: Float[Tensor, "batch heads tokens head_dim"],
    weight: Float[Tensor, "heads head_dim feature_dim"],
    *,
    bias: Float[Tensor, "1 heads 1 1"] | None = None,
    skip: bool = False,
) -> Float[Tensor, "batch heads tokens feature_dim"]:
    """Inside of a feature map, z = x W_h + b_h, plus x with `skip`: a matrix and a scalar for each head."""
    dtype = compute_dtype(x)
    x = x.to(dtype)
    projected = x @ weight.to(dtype)
    if bias is not None:
        projected = projected + bias.to(dtype)
    return x + projected if skip else projected


@without_autocast
def softmax_features(
    z: Float[Tensor, "*batch width"], *, fullspace: bool = True, eps: float = FEATURE_EPS
) -> Float[Tensor, "*batch features"]:
    """[softmax(z), softmax(-z)] over the channels, or the first half of it."""
    z = z.to(compute_dtype(z))
    halves = [z, -z] if fullspace else [z]
    return torch.cat([half.softmax(dim=-1) for half in halves], dim=-1).clamp(min=eps)


@without_autocast
def exp_features(
    z: Float[Tensor, "*batch width"], *, fullspace: bool = True, stabilize: bool = True, eps: float = FEATURE_EPS
) -> Float[Tensor, "*batch features"]:
    """[exp(z), exp(-z)], or the first half of it.

    With `stabilize` the exponents of a token are lowered to at most 0, as in the compared code. That cancels for
    queries, but not for keys, whose weights it changes; the paper's formula has no subtraction.
    """
    z = z.to(compute_dtype(z))
    exponents = [z, -z] if fullspace else [z]
    if stabilize:
        exponents = [exponent - exponent.amax(dim=-1, keepdim=True) for exponent in exponents]
    return torch.cat([exponent.exp() for exponent in exponents], dim=-1).clamp(min=eps)


@without_autocast
def elu_features(z: Float[Tensor, "*batch width"], *, eps: float = 0.0) -> Float[Tensor, "*batch width"]:
    """1 + elu(z), at least `eps`."""
    features = 1 + elu(z.to(compute_dtype(z)))
    return features.clamp(min=eps) if eps else features


@without_autocast
def relu_features(z: Float[Tensor, "*batch width"], *, eps: float = FEATURE_EPS) -> Float[Tensor, "*batch width"]:
    """relu(z), at least `eps`."""
    return z.to(compute_dtype(z)).relu().clamp(min=eps)


@without_autocast
def taylor_features(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch features"]:
    """[1, u, vec(u u^T) / sqrt(2)] of u = x / d^(1/4), 1 + d + d^2 wide.

    The product of two such is the second-order Taylor expansion of exp(q . k / sqrt(d)), which is positive.
    """
    x = x.to(compute_dtype(x)) * x.shape[-1] ** -0.25
    squares = (x[..., :, None] * x[..., None, :]).flatten(-2) * 2**-0.5
    return torch.cat((torch.ones_like(x[..., :1]), x, squares), dim=-1)
