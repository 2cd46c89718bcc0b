"""Norms over the last axis, by name: with a weight and a bias, with a weight, or without parameters."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from regard.ops.norms import simple_rms_norm

NormName = Literal["srmsnorm", "rmsnorm", "layernorm"]
NORMS: tuple[NormName, ...] = ("srmsnorm", "rmsnorm", "layernorm")
RMS_EPS = 1e-6


class SimpleRMSNorm(nn.Module):
    """SRMSNorm: x / sqrt(mean(x^2) + eps), without parameters.

    Paper: "TransNormerLLM", Qin et al., 2023, https://arxiv.org/abs/2307.14995, section 3.

    Args:
        eps: added to the mean square.

    Raises:
        ValueError: a negative `eps`.
    """

    def __init__(self, *, eps: float = RMS_EPS) -> None:
        super().__init__()
        if eps < 0:
            raise ValueError(f"eps must not be negative, got {eps}")
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """In at least float32; the result has the type of `x`."""
        return simple_rms_norm(x, eps=self.eps)

    def extra_repr(self) -> str:
        """The epsilon."""
        return f"eps={self.eps}"


def norm_by_name(name: NormName, dim: int) -> nn.Module:
    """A norm over the last axis, `dim` wide.

    Args:
        name: "srmsnorm" (no parameters), "rmsnorm" (a weight) or "layernorm" (a weight and a bias).
        dim: width of the axis.

    Raises:
        ValueError: an unknown name.
    """
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {name!r}")
    if name == "srmsnorm":
        return SimpleRMSNorm()
    return nn.RMSNorm(dim, eps=RMS_EPS) if name == "rmsnorm" else nn.LayerNorm(dim)
