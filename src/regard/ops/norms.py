"""Normalisations without parameters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast


def simple_rms_norm_reference(x: Float[Tensor, "*batch width"], *, eps: float = 1e-6) -> Float[Tensor, "*batch width"]:
    """The formula as written; arguments as for `simple_rms_norm`."""
    wide = x.to(compute_dtype(x))
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype)


@without_autocast
def simple_rms_norm(x: Float[Tensor, "*batch width"], *, eps: float = 1e-6) -> Float[Tensor, "*batch width"]:
    """SimpleRMSNorm: x / sqrt(mean(x^2) + eps), without a weight, in at least float32.

    Paper: "TransNormerLLM", Qin et al., 2023, https://arxiv.org/abs/2307.14995, section 3.
    """
    # a norm reads x once; the mean of squares writes them first, which takes a third longer, in training half longer
    wide = x.to(compute_dtype(x))
    mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
    return (wide * torch.rsqrt(mean_square + eps)).to(x.dtype)
