"""Performer's random features (FAVOR+), whose products stand in for exp(q . k), and attention through them.

Paper: "Rethinking Attention with Performers", Choromanski et al., ICLR 2021, https://arxiv.org/abs/2009.14794, lemma 1
(positive features), section 2.4 (orthogonal ones), and the generalised features of appendix D, f(x) = relu(x).
Compared through gmlwns2000/sea-attention@5609413b with `performer-pytorch`, whose constants are kept.
Different from that code: gradients also flow through the maxima that keep the exponents small, unless
`constant_maximum` is set; and random directions are uniform, whatever signs the factorisation that makes them
orthogonal prefers.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.linear_attention import linear_attention, linear_attention_weights, linear_attention_with_state
from regard.ops.precision import compute_dtype, without_autocast

RELU_EPS = 1e-3
"""Added to every relu feature."""
EXP_EPS = 1e-4
"""Added to every exponential feature."""
NORMALISER_EPS = 1e-6
"""Added to every sum of keys' features in the causal form."""

Features = Float[Tensor, "batch heads tokens features"]


def feature_count(head_dim: int, *, divisor: float = 1.0) -> int:
    """Number of random features, int(d ln d / divisor).

    Raises:
        ValueError: a divisor that is not positive, or sizes that leave no feature.
    """
    count = int(head_dim * math.log(head_dim) / divisor) if head_dim > 0 and divisor > 0 else 0
    if count < 1:
        raise ValueError(
            f"int(d ln d / divisor) must be at least 1 random feature, got d={head_dim} and divisor={divisor}"
        )
    return count


def orthogonal_directions(
    count: int, dim: int, *, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Float[Tensor, "count dim"]:
    """Random directions, orthogonal in groups of `dim`, each as long as an independent normal vector.

    Args:
        count: number of directions.
        dim: their width.
        generator: where randomness comes from; None = the global one.
        device: where to draw them.
    """
    groups = -(-count // dim)
    squares = torch.randn(groups, dim, dim, generator=generator, device=device)
    factors = torch.linalg.qr(squares)
    # a factorisation chooses signs of its own, by which all directions would lie in one half of the space
    signs = factors.R.diagonal(dim1=1, dim2=2).sign()
    directions = (factors.Q * signs[:, None]).transpose(1, 2).flatten(0, 1)[:count]
    lengths = torch.randn(count, dim, generator=generator, device=device).norm(dim=1, keepdim=True)
    return directions * lengths


@without_autocast
def relu_kernel_features(
    x: Float[Tensor, "batch heads tokens head_dim"], directions: Float[Tensor, "features head_dim"]
) -> Features:
    """relu(x R^T / d^(1/4)) + 1e-3, in at least float32."""
    return _projected(x, directions).relu() + RELU_EPS


@without_autocast
def exp_kernel_features(
    x: Float[Tensor, "batch heads tokens head_dim"],
    directions: Float[Tensor, "features head_dim"],
    *,
    queries: bool,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    constant_maximum: bool = False,
) -> Features:
    """r^(-1/2) (exp(p - |x|^2 / (2 sqrt(d)) - c) + 1e-4) with p = x R^T / d^(1/4), in at least float32.

    Args:
        x: queries or keys.
        directions: R, of which there are r.
        queries: c is the maximum of p over each token's features; else over all features of all tokens of the head.
        mask: True = real token; others do not count for the maximum over tokens.
        constant_maximum: no gradient through c.
    """
    p = _projected(x, directions)
    source = p.detach() if constant_maximum else p
    size = x.to(p.dtype).square().sum(dim=-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)
    if queries:
        exponent = p - size - source.amax(dim=-1, keepdim=True)
    elif mask is None:
        exponent = p - size - source.amax(dim=(2, 3), keepdim=True)
    else:
        real = mask[:, None, :, None]
        largest = torch.where(real, source, torch.finfo(p.dtype).min).amax(dim=(2, 3), keepdim=True)
        # what is not real may be larger than the maximum: it must not overflow
        exponent = torch.where(real, p - size - largest, 0)
    return (exponent.exp() + EXP_EPS) * directions.shape[0] ** -0.5


@without_autocast
def performer_attention(
    phi_q: Features,
    phi_k: Features,
    values: Float[Tensor, "batch heads tokens value_dim"],
    *,
    causal: bool,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    block_size: int | None = None,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """phi_q_i . sum_j phi_k_j v_j / (phi_q_i . sum_j (phi_k_j + eps)), over the visible tokens j, in linear time.

    Args:
        phi_q: the queries' features; all inputs have one dtype.
        phi_k: the keys' features.
        values: what is averaged.
        causal: hide the future, and add 1e-6 to each sum of features; else nothing is added.
        mask: True on the prefix of each row that is real; a causal form need not look at it.
        block_size: tokens in a block of the causal form; None = the fastest.
    """
    sums = linear_attention(phi_q, phi_k, _with_ones(values), causal=causal, mask=mask, block_size=block_size)
    return _divide(sums, phi_q, causal=causal)


@without_autocast
def performer_attention_reference(
    phi_q: Features,
    phi_k: Features,
    values: Float[Tensor, "batch heads tokens value_dim"],
    *,
    causal: bool,
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """The same through the whole map of weights; arguments as for `performer_attention`."""
    weights = linear_attention_weights(phi_q, phi_k, causal=causal, mask=mask)
    return _divide(weights @ _with_ones(values).to(weights.dtype), phi_q, causal=causal)


@without_autocast
def performer_attention_with_state(
    phi_q: Features,
    phi_k: Features,
    values: Float[Tensor, "batch heads tokens value_dim"],
    state: Float[Tensor, "batch heads features state_dim"],
    *,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    block_size: int | None = None,
) -> tuple[Float[Tensor, "batch heads tokens value_dim"], Float[Tensor, "batch heads features state_dim"]]:
    """The causal form for tokens that follow those in `state`, and the state after them.

    Args:
        phi_q: the queries' features.
        phi_k: the keys' features.
        values: what is averaged.
        state: sums of phi_k^T [v, 1]; `state_dim` is the values' width and one more.
        mask: True on the prefix of each row that is real; the rest leaves the state as it is.
        block_size: tokens in a block; None = the fastest.
    """
    sums, after = linear_attention_with_state(phi_q, phi_k, _with_ones(values), state, mask=mask, block_size=block_size)
    return _divide(sums, phi_q, causal=True), after


def _projected(x: Tensor, directions: Tensor) -> Tensor:
    dtype = compute_dtype(x)
    return (x.to(dtype) * x.shape[-1] ** -0.25) @ directions.to(dtype).transpose(0, 1)


def _with_ones(values: Tensor) -> Tensor:
    """Values with a column of ones: what is summed there is the sum of the weights."""
    return pad(values, (0, 1), value=1.0)


def _divide(sums: Tensor, phi_q: Tensor, *, causal: bool) -> Tensor:
    total = sums[..., -1:]
    if causal:
        total = total + NORMALISER_EPS * phi_q.sum(dim=-1, keepdim=True)
    # a row of the batch without any real token has no weights at all
    return sums[..., :-1] / torch.where(total == 0, 1, total)
