"""Stochastic depth: a residual branch is left out of a sample as a whole.

Paper: "Deep Networks with Stochastic Depth", Huang et al., ECCV 2016, https://arxiv.org/abs/1603.09382.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, 0 for a sample with probability `rate`, else `x / (1 - rate)`; the identity in evaluation.

    Args:
        rate: probability of dropping.

    Raises:
        ValueError: a rate outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Each sample by itself."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


def linear_rates(rate: float, count: int) -> list[float]:
    """Rates that rise linearly from 0 to `rate` over `count` branches; a single branch has 0."""
    return [rate * index / max(1, count - 1) for index in range(count)]
