"""A pre-norm block with stochastic depth around any mixer of tokens or of maps whose channels lie last.

Papers: "An Image is Worth 16x16 Words", Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929, equations 2
and 3; "Deep Networks with Stochastic Depth", Huang et al., ECCV 2016, https://arxiv.org/abs/1603.09382.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from regard.layers.drop_path import DropPath
from regard.layers.feed_forward import FeedForward

Tokens = Float[Tensor, "batch *space channels"]


class PreNormBlock(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)), on tokens or maps whose last axis holds the channels.

    Args:
        mixer: from the normed tokens, and for some mixers the size of their map, to the same shape.
        channels: width.
        hidden: width inside the perceptron.
        drop_path: rate of stochastic depth of both branches.
        norm_eps: added to the variance in both norms.
    """

    def __init__(
        self, mixer: nn.Module, *, channels: int, hidden: int, drop_path: float = 0.0, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(channels, eps=norm_eps)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(channels, eps=norm_eps)
        self.mlp = FeedForward(channels, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tokens, space: tuple[int, int] | None = None) -> Tokens:
        """Mix positions, then channels; `space` is handed to a mixer that asks for it."""
        normed = self.mixer_norm(x)
        x = x + self.drop_path(self.mix(normed) if space is None else self.mixer(normed, space))
        return x + self.drop_path(self.mlp(self.mlp_norm(x)))

    def mix(self, normed: Tokens) -> Tokens:
        """The mixer; a block that cuts the map up does it here."""
        return self.mixer(normed)


PRE_NORM_NAMES = (
    (r"(^|\.)norm1\.", r"\1mixer_norm."),
    (r"(^|\.)norm2\.", r"\1mlp_norm."),
    (r"(^|\.)mlp\.fc1\.", r"\1mlp.up_proj."),
    (r"(^|\.)mlp\.fc2\.", r"\1mlp.down_proj."),
)
"""The usual names of a block's parts (timm's) as ours."""


def initialise_linear(part: nn.Module) -> None:
    """Weights of linear maps from a truncated normal distribution of width 0.02, their biases zero; for `apply`."""
    if isinstance(part, nn.Linear):
        nn.init.trunc_normal_(part.weight, std=0.02)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
