"""Two-layer perceptrons with a GELU and dropout: over the features of a token, and over the tokens of a channel.

Sources: "An Image is Worth 16x16 Words", Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929, section 3.1;
"MLP-Mixer", Tolstikhin et al., NeurIPS 2021, https://arxiv.org/abs/2105.01601, equation 1.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from regard.ops.token_mixing import token_linear


class FeedForward(nn.Module):
    """Linear, GELU, dropout, linear, dropout on the last axis, whose width is `dim` before and after.

    Args:
        dim: width of a token.
        hidden: width inside.
        dropout: probability of dropping a number, after both linear maps.
        approximate: "none" for the exact GELU, "tanh" for its approximation.

    Raises:
        ValueError: a width that is not positive, or a probability outside [0, 1).
    """

    def __init__(
        self, dim: int, hidden: int, *, dropout: float = 0.0, approximate: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__()
        if dim < 1 or hidden < 1:
            raise ValueError(f"the widths of a perceptron must be positive, got {dim} and {hidden} inside")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.up_proj = nn.Linear(dim, hidden)
        self.down_proj = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        self.approximate = approximate

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Every token by itself."""
        inner = gelu(self.up_proj(x), approximate=self.approximate)
        return self.dropout(self.down_proj(self.dropout(inner)))


class TokenFeedForward(FeedForward):
    """The same on the token axis: every channel by itself, with weights shared over the channels.

    Args:
        seq_len: number of tokens, which is fixed.
        hidden: width inside.
        dropout: probability of dropping a number, after both linear maps.

    Raises:
        ValueError: a size that is not positive, or a probability outside [0, 1).
    """

    def __init__(self, seq_len: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__(seq_len, hidden, dropout=dropout)

    def forward(self, x: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens channels"]:
        """Every channel by itself.

        Raises:
            ValueError: another number of tokens.
        """
        up, down = self.up_proj, self.down_proj
        if x.shape[1] != up.in_features:
            raise ValueError(
                f"x has {x.shape[1]} tokens and the weights are those of seq_len={up.in_features}: they must be equal"
            )
        inner = self.dropout(gelu(token_linear(x, up.weight, up.bias)))
        return self.dropout(token_linear(inner, down.weight, down.bias))
