"""MLP-Mixer's block: a perceptron along the tokens, then one along the channels, each with a norm and a residual.

Paper: "MLP-Mixer: An all-MLP Architecture for Vision", Tolstikhin et al., NeurIPS 2021,
https://arxiv.org/abs/2105.01601, equation 1. The norms' epsilon is PyTorch's 1e-5 unless given.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from regard.layers.feed_forward import FeedForward, TokenFeedForward


class MixerBlock(nn.Module):
    """x + T(MLP(T(norm(x)))), then x + MLP(norm(x)), where T exchanges tokens and channels.

    Args:
        seq_len: number of tokens, which is fixed.
        dim: number of channels.
        token_hidden: width inside the perceptron along the tokens.
        channel_hidden: width inside the perceptron along the channels.
        dropout: probability of dropping a number, twice in each perceptron.
        norm_eps: added to the variance in both norms.

    Raises:
        ValueError: a size that is not positive, or a probability outside [0, 1).

    Cost: 2 * tokens * dim * (token_hidden + channel_hidden) MACs.
    """

    def __init__(
        self,
        seq_len: int,
        dim: int,
        *,
        token_hidden: int,
        channel_hidden: int,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.token_mlp = TokenFeedForward(seq_len, token_hidden, dropout=dropout)
        self.channel_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.channel_mlp = FeedForward(dim, channel_hidden, dropout=dropout)

    def forward(self, x: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens channels"]:
        """Mix tokens, then channels.

        Raises:
            ValueError: another number of tokens.
        """
        x = x + self.token_mlp(self.token_norm(x))
        return x + self.channel_mlp(self.channel_norm(x))


def mixer_block_macs(*, seq_len: int, dim: int, token_hidden: int, channel_hidden: int) -> int:
    """Contraction MACs of one row."""
    return 2 * seq_len * dim * (token_hidden + channel_hidden)
