"""GEGLU: a gated perceptron whose gate is a GELU.

Paper: "GLU Variants Improve Transformer", Shazeer, 2020, https://arxiv.org/abs/2002.05202, equation 6.
Read beside google-research/google-research@0c1bbe5f, `routing_transformer/utils.py:geglu`, whose GELU is the
approximation by tanh.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu


class GEGLU(nn.Module):
    """y = (GELU(x W) * x V) W_2.

    Args:
        dim: width of a token.
        hidden: width inside.
        dropout: probability of dropping a number inside.
        bias: bias in all three projections.

    Raises:
        ValueError: a width that is not positive, or a probability outside [0, 1).

    Cost: 3 * dim * hidden MACs per token.
    """

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0, bias: bool = False) -> None:
        super().__init__()
        if dim < 1 or hidden < 1:
            raise ValueError(f"the widths of a gated unit must be positive, got {dim} and {hidden} inside")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.gate_proj = nn.Linear(dim, hidden, bias=bias)
        self.up_proj = nn.Linear(dim, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Every token by itself."""
        return self.down_proj(self.dropout(gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)))
