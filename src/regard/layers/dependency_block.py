"""A Transformer block around reversed attention, which may keep only the tokens that matter.

Paper: "Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention", Ding et al., CVPR 2023,
https://arxiv.org/abs/2304.03282, section 3. The authors published no code; the order (attention, pruning, perceptron)
and the learned factors on the branches are those of an independent implementation in timm's style (Fredo Guan, 2023,
`timm/models/dependencyvit.py:DependencyViTBlock`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.layers.drop_path import DropPath
from regard.layers.feed_forward import FeedForward
from regard.layers.reversed_attention import SCORES, ReversedAttention, Score
from regard.ops.reversed_attention import best_tokens, kept_part, take_tokens, tokens_kept

Tokens = Float[Tensor, "batch tokens dim"]
TokenWeights = Float[Tensor, "batch tokens"]
Positions = Int[Tensor, "batch tokens"]


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """How a block prunes tokens.

    Args:
        number: which pruning of the network it is, counted from 1.
        ratio: part of the network's first tokens that each pruning takes.
        score: the highest of which are kept.

    Raises:
        ValueError: a pruning that would leave nothing, or an unknown score.
    """

    number: int
    ratio: float
    score: Score = "received"

    def __post_init__(self) -> None:
        if self.number < 1 or not 0 <= self.number * self.ratio < 1:
            raise ValueError(f"number times ratio must be in [0, 1), got number={self.number} and ratio={self.ratio}")
        if self.score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {self.score!r}")


class DependencyBlock(nn.Module):
    """x + s1 Y(norm(x), m), then pruning, then x + s2 MLP(norm(x)).

    Args:
        mixer: reversed attention.
        dim: width.
        hidden: width inside the perceptron.
        drop_path: rate of stochastic depth of both branches.
        layer_scale: start of s1 and s2, the learned factors on each channel of a branch; None = 1, not learned.
        pruning: how tokens are pruned; None = not at all.
        norm_eps: added to the variance in both norms.
    """

    def __init__(
        self,
        mixer: ReversedAttention,
        *,
        dim: int,
        hidden: int,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        pruning: Pruning | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FeedForward(dim, hidden)
        self.drop_path = DropPath(drop_path)
        self.mixer_scale, self.mlp_scale = (
            None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale)) for _ in range(2)
        )
        self.pruning = pruning
        self.kept_part = (1, 1) if pruning is None else kept_part(pruning.number, pruning.ratio)

    def forward(
        self, x: Tokens, m: TokenWeights | None, kept: Positions | None
    ) -> tuple[Tokens, TokenWeights, Positions | None]:
        """The tokens, how much each still sends, and where those that are left were.

        Args:
            x: the tokens.
            m: how much each of them still sends; None = 1.
            kept: of each token its number before any pruning; None = nothing has been pruned.

        Raises:
            ValueError: an m of another shape than the tokens.
        """
        sent = self.mixer(self.mixer_norm(x), m, score=None if self.pruning is None else self.pruning.score)
        x, m = x + self.drop_path(_scaled(sent.y, self.mixer_scale)), sent.m
        if self.pruning is not None:
            chosen = best_tokens(sent.score, tokens_kept(x.shape[1], self.kept_part))
            x, m = take_tokens(x, chosen), m.gather(1, chosen)
            kept = chosen if kept is None else kept.gather(1, chosen)
        return x + self.drop_path(_scaled(self.mlp(self.mlp_norm(x)), self.mlp_scale)), m, kept

    def dependency_mask(self, x: Tokens, m: TokenWeights | None) -> Float[Tensor, "batch receivers senders"]:
        """What every token receives of every other in this block, before it prunes.

        Raises:
            ValueError: an m of another shape than the tokens.
        """
        return self.mixer.dependency_mask(self.mixer_norm(x), m)


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale
