"""Performer's random directions as part of a network: stored, frozen, and drawn anew now and then while training.

Paper: "Rethinking Attention with Performers", Choromanski et al., ICLR 2021, https://arxiv.org/abs/2009.14794,
section 2.4 (orthogonal directions) and section 4.2 (drawing them anew).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.performer_features import (
    exp_kernel_features,
    feature_count,
    orthogonal_directions,
    relu_kernel_features,
)


class RandomFeatures(nn.Module):
    """Features of queries and keys: relu features for the causal form, positive exponential ones without it.

    The directions are a parameter without gradient, since they are part of what the network has learned to live with.

    Args:
        head_dim: d, width of a head.
        causal: which features.
        divisor: int(d ln d / divisor) features.
        redraw_interval: calls in training mode after which directions are drawn anew; None = never. Not while a graph
            is compiled.
        constant_maxima: no gradient through the maxima of the exponential features' exponents, as in performer-pytorch.

    Raises:
        ValueError: sizes that leave no feature, or an interval that is not positive.
    """

    directions: nn.Parameter
    calls: Tensor

    def __init__(
        self,
        head_dim: int,
        *,
        causal: bool,
        divisor: float = 1.0,
        redraw_interval: int | None = 1000,
        constant_maxima: bool = False,
    ) -> None:
        super().__init__()
        if redraw_interval is not None and redraw_interval < 1:
            raise ValueError(f"redraw_interval must be positive or None, got {redraw_interval}")
        self.causal, self.redraw_interval, self.constant_maxima = causal, redraw_interval, constant_maxima
        drawn = orthogonal_directions(feature_count(head_dim, divisor=divisor), head_dim)
        self.directions = nn.Parameter(drawn, requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @property
    def width(self) -> int:
        """Number of features."""
        return self.directions.shape[0]

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw the directions anew.

        Args:
            generator: where randomness comes from; None = the global one.
        """
        count, width = self.directions.shape
        drawn = orthogonal_directions(count, width, generator=generator, device=self.directions.device)
        # a new parameter: the old one may be held for a backward pass
        self.directions = nn.Parameter(drawn.to(self.directions), requires_grad=False)
        self.calls.zero_()

    def count_call(self) -> None:
        """Count a call in training mode, and draw anew when it is time."""
        if not self.training or self.redraw_interval is None or torch.compiler.is_compiling():
            return
        if int(self.calls) >= self.redraw_interval:
            self.redraw()
        else:
            self.calls += 1

    def forward(
        self,
        q: Float[Tensor, "batch heads queries head_dim"],
        k: Float[Tensor, "batch heads keys head_dim"],
        *,
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads queries features"], Float[Tensor, "batch heads keys features"]]:
        """Features of queries and keys, in at least float32.

        Args:
            q: queries.
            k: keys.
            mask: True = real key; the relu features do not need it.
        """
        self.count_call()
        directions = self.directions
        if self.causal:
            return relu_kernel_features(q, directions), relu_kernel_features(k, directions)
        constant = self.constant_maxima
        phi_k = exp_kernel_features(k, directions, queries=False, mask=mask, constant_maximum=constant)
        return exp_kernel_features(q, directions, queries=True, constant_maximum=constant), phi_k
