"""SGLU, the simple gated linear unit: a perceptron whose only non-linearity is the product of two projections.

Papers: "TransNormerLLM", Qin et al., 2023, https://arxiv.org/abs/2307.14995, section 3; "GLU Variants Improve
Transformer", Shazeer, 2020, https://arxiv.org/abs/2002.05202 (the bilinear one). Compared with
weigao266/TNL-MoE@007576fe `smoe/models/tnl/modeling_transnormer.py` (`GLU`).
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

GateActivation = Literal["none", "silu"]


class SGLU(nn.Module):
    """y = (f(x W_g) * x W_u) W_d, with f the identity.

    Args:
        dim: width of a token.
        hidden: width inside.
        activation: f: "none", or "silu", which makes it SwiGLU.
        bias: bias in all three projections.

    Raises:
        ValueError: a width that is not positive, or an unknown activation.

    Cost: 3 * dim * hidden MACs per token.
    """

    def __init__(self, dim: int, hidden: int, *, activation: GateActivation = "none", bias: bool = False) -> None:
        super().__init__()
        if dim < 1 or hidden < 1:
            raise ValueError(f"the widths of a gated unit must be positive, got {dim} and {hidden} inside")
        if activation not in ("none", "silu"):
            raise ValueError(f"the activation of a gated unit must be one of none, silu, got {activation!r}")
        self.activation = activation
        self.gate_proj = nn.Linear(dim, hidden, bias=bias)
        self.up_proj = nn.Linear(dim, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Every token by itself."""
        gate = self.gate_proj(x)
        return self.down_proj((silu(gate) if self.activation == "silu" else gate) * self.up_proj(x))
