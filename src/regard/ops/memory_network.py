"""The network that a neural memory is: a small perceptron per head, and the gradients of its loss in closed form.

Paper: "Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663,
section 3.1: M maps a key to a value, and what it learns from is the gradient of ||M(k) - v||^2 (equation 12).

    x_1 = k,  z_l = x_l W_l,  x_{l+1} = gelu(z_l),  M(k) = z_L

or, with a residual norm, M(k) = k + norm(z_L) (1 + g), whose LayerNorm has no parameters and whose gain g is one more
weight of the memory. The gradient of one token's loss by any weight is an outer product x_l^T delta_l, so a chunk of
tokens is a few matrix products, and no gradient of a single token is ever laid out.

Rows are any number of leading axes, often batch and heads. Weights are tuples: matrices `(*rows, in, out)`, then, with
a residual norm, the gain `(*rows, 1, width)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

Weights: TypeAlias = tuple[Float[Tensor, "*rows _in_width _out_width"], ...]
Product = Callable[[Tensor, int], Tensor]
"""A layer's inputs times the weight of this number."""

NORM_EPS = 1e-5
"""LayerNorm's usual epsilon, of the residual norm."""


class Surprise(NamedTuple):
    """Gradients of each token's loss by every weight, as factors: the gradient by weight l is `x[l]^T delta[l]`."""

    x: tuple[Float[Tensor, "*rows tokens _in_width"], ...]
    delta: tuple[Float[Tensor, "*rows tokens _out_width"], ...]
    error: Float[Tensor, "*rows tokens width"]
    """M(k) - v."""


def memory_widths(width: int, *, depth: int, expansion: int) -> list[int]:
    """Widths between the memory's matrices: the head's at both ends, `expansion` times as much between.

    Raises:
        ValueError: a number that is not positive.
    """
    if min(width, depth, expansion) < 1:
        raise ValueError(
            f"width, depth and expansion must be positive, got width={width}, depth={depth}, expansion={expansion}"
        )
    return [width, *[expansion * width] * (depth - 1), width]


def run_memory(
    x: Float[Tensor, "*rows tokens width"], product: Product, *, matrices: int, residual_norm: bool
) -> Float[Tensor, "*rows tokens width"]:
    """M(x), where `product(inputs, l)` multiplies a layer's inputs by weight l, whatever that is at each token."""
    z = product(x, 0)
    for layer in range(1, matrices):
        z = product(gelu(z), layer)
    if not residual_norm:
        return z
    gain = product(torch.ones_like(x[..., :1]), matrices)
    return torch.addcmul(x, layer_norm(z, z.shape[-1:], eps=NORM_EPS), 1 + gain)


def read_memory(
    x: Float[Tensor, "*rows tokens width"], weights: Weights, *, residual_norm: bool
) -> Float[Tensor, "*rows tokens width"]:
    """M(x) with the same weights at every token.

    Args:
        x: queries, or keys.
        weights: the memory's.
        residual_norm: whether the last weight is the gain of a residual norm.
    """
    matrices = len(weights) - residual_norm
    return run_memory(x, lambda inputs, layer: inputs @ weights[layer], matrices=matrices, residual_norm=residual_norm)


def surprise(
    k: Float[Tensor, "*rows tokens width"],
    v: Float[Tensor, "*rows tokens width"],
    weights: Weights,
    *,
    residual_norm: bool,
    limit: float | None = None,
) -> Surprise:
    """Gradients of `||M(k) - v||^2`, token by token, in closed form.

    Args:
        k: keys.
        v: values.
        weights: where the gradients are taken.
        residual_norm: whether the last weight is the gain of a residual norm.
        limit: largest Frobenius norm of one token's gradient by one weight; longer ones are shortened to it.
    """
    matrices = len(weights) - residual_norm
    inputs, before = [k], [k @ weights[0]]
    for weight in weights[1:matrices]:
        inputs.append(gelu(before[-1]))
        before.append(inputs[-1] @ weight)
    last, deltas = before[-1], []
    if residual_norm:
        variance, average = torch.var_mean(last, dim=-1, keepdim=True, correction=0)
        scale = torch.rsqrt(variance + NORM_EPS)
        normalised = (last - average) * scale
        gain = 1 + weights[-1]
        error = torch.addcmul(k - v, normalised, gain)
        inputs.append(torch.ones_like(k[..., :1]))
        deltas.append(2 * error * normalised)
        delta = _back_through_norm(2 * error * gain, normalised, scale)
    else:
        error = last - v
        delta = 2 * error
    deltas.append(delta)
    for layer in range(matrices - 1, 0, -1):
        delta = torch.ops.aten.gelu_backward(delta @ weights[layer].mT, before[layer - 1])
        deltas.append(delta)
    deltas.reverse()
    if limit is not None:
        deltas = [_shortened(x, delta, limit) for x, delta in zip(inputs, deltas, strict=True)]
    return Surprise(tuple(inputs), tuple(deltas), error)


def _shortened(x: Tensor, delta: Tensor, limit: float) -> Tensor:
    """delta, such that the outer product x^T delta, whose norm is that of x times that of delta, keeps to the limit."""
    norm = torch.linalg.vector_norm
    size = norm(x, dim=-1, keepdim=True) * norm(delta, dim=-1, keepdim=True)
    return delta * (limit / size.clamp_min(limit))


def _back_through_norm(upstream: Tensor, normalised: Tensor, scale: Tensor) -> Tensor:
    """Through a LayerNorm without parameters: what is left after its two projections."""
    along = (upstream * normalised).mean(dim=-1, keepdim=True)
    return (upstream - upstream.mean(dim=-1, keepdim=True) - normalised * along) * scale


def gradients_by_autograd(
    k: Float[Tensor, "*rows tokens width"],
    v: Float[Tensor, "*rows tokens width"],
    weights: Sequence[Tensor],
    *,
    residual_norm: bool,
) -> tuple[Float[Tensor, "*rows tokens _in_width _out_width"], ...]:
    """Every token's gradients by vmap over grad: the plain truth beside `surprise`. Memory tokens x weights."""

    def loss(weights: tuple[Tensor, ...], k: Tensor, v: Tensor) -> Tensor:
        return (read_memory(k, weights, residual_norm=residual_norm) - v).square().sum()

    by_token = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    by_row = torch.func.vmap(torch.func.vmap(by_token))
    # a token keeps an axis of its own, since the memory multiplies matrices
    return by_row(tuple(weights), k[..., None, :], v[..., None, :])
