"""Normalisations without parameters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast


@without_autocast
def simple_rms_norm(x: Float[Tensor, "*batch width"], *, eps: float = 1e-6) -> Float[Tensor, "*batch width"]:
    """SimpleRMSNorm: x / sqrt(mean(x^2) + eps), without a weight, in at least float32.

    Paper: "TransNormerLLM", Qin et al., 2023, https://arxiv.org/abs/2307.14995, section 3.2.
    """
    wide = x.to(compute_dtype(x))
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype)
