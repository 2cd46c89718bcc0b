"""Relative biases that depend on the query and on sinusoids of the distance.

Paper: "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", Dai et al., ACL 2019,
https://arxiv.org/abs/1901.02860, section 3.3: the score is (q_i + u) . k_j + (q_i + v) . W_r R_{i-j}, over sqrt(d).
Different from the paper's code: sinusoids are laid out as in `regard.ops.absolute_positions`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.ops.absolute_positions import sinusoids
from regard.ops.heads import head_width


class SinusoidBias(nn.Module):
    """u, v and W_r of one layer.

    Args:
        dim: width of the model, and of the sinusoids.
        num_heads: number of heads; must divide `dim`.

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        width = head_width(dim, num_heads)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, width))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, width))
        self.r_proj = nn.Linear(dim, dim, bias=False)

    def content(
        self, q: Float[Tensor, "batch heads queries head_dim"]
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """What meets keys: q + u."""
        return q + self.content_bias[:, None]

    def products(
        self, q: Float[Tensor, "batch heads queries head_dim"], distance: Int[Tensor, " offsets"]
    ) -> Float[Tensor, "batch heads queries offsets"]:
        """(q + v) . W_r R_{-distance} / sqrt(d): a column per distance, key minus query."""
        waves = sinusoids(-distance[None], self.r_proj.in_features)[0].to(self.r_proj.weight.dtype)
        directions = self.r_proj(waves).unflatten(-1, self.content_bias.shape).permute(1, 2, 0)
        return (q + self.position_bias[:, None]) * q.shape[-1] ** -0.5 @ directions.to(q.dtype)
