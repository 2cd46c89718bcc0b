"""What a layer of URPE attention knows of positions: the biases B before the softmax, and the factors C after it.

Paper: "Your Transformer May Not be as Powerful as You Expect", Luo et al., NeurIPS 2022,
https://arxiv.org/abs/2205.13401: C takes its place behind any relative encoding B, and is looked up by the same
relation of positions. A layer owns its tables, and layers may share them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.layers.relative_table import RelativeTable
from regard.layers.sinusoid_bias import SinusoidBias
from regard.ops.decay import alibi_slopes
from regard.ops.relative_shift import relative_shift
from regard.ops.toeplitz import distances

Biases = Literal["unique", "log", "transformer_xl", "alibi", "none"]
BIASES: tuple[Biases, ...] = ("unique", "log", "transformer_xl", "alibi", "none")
Factors = Literal["unique", "log", "none"]
FACTORS: tuple[Factors, ...] = ("unique", "log", "none")


class Terms(NamedTuple):
    """B and C for queries of which the last stands at the last key."""

    factors: Float[Tensor, "heads offsets"] | None
    """C by distance; None = 1."""
    biases: Float[Tensor, "heads offsets"] | None
    """B by distance."""
    bias: Float[Tensor, "batch heads queries keys"] | None
    """What of B depends on the query."""


class URPEPositions(nn.Module):
    """Tables and directions of one layer, or of several.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        biases: B: "unique", "log" (learned tables), "transformer_xl", "alibi" or "none".
        factors: C: "unique", "log" or "none" (all 1).
        max_positions: most tokens.
        num_buckets: buckets of a "log" table.
        max_distance: distance from which on all share the last bucket of a "log" table.
        causal: no future.

    Raises:
        ValueError: an unknown option, or sizes that do not fit.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        biases: Biases,
        factors: Factors,
        max_positions: int,
        num_buckets: int = 64,
        max_distance: int = 128,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if biases not in BIASES:
            raise ValueError(f"biases must be one of {', '.join(BIASES)}, got {biases!r}")
        if factors not in FACTORS:
            raise ValueError(f"factors must be one of {', '.join(FACTORS)}, got {factors!r}")
        if max_positions < 1:
            raise ValueError(f"max_positions must be positive, got {max_positions}")
        self.max_positions, self.causal = max_positions, causal

        def table(relation: Literal["unique", "log"], mean: float, std: float) -> RelativeTable:
            return RelativeTable(
                num_heads,
                relation=relation,
                max_positions=max_positions,
                num_buckets=num_buckets,
                max_distance=max_distance,
                causal=causal,
                mean=mean,
                std=std,
            )

        self.slopes = alibi_slopes(num_heads) if biases == "alibi" else None
        self.sinusoids = SinusoidBias(dim, num_heads) if biases == "transformer_xl" else None
        self.biases = table(biases, 0.0, 0.02) if biases in ("unique", "log") else None
        # 1 everywhere: at the start C changes nothing
        self.factors = table(factors, 1.0, 0.0) if factors in ("unique", "log") else None

    def check_length(self, tokens: int) -> None:
        """Refuse more tokens than there are positions.

        Raises:
            ValueError: names both numbers.
        """
        if tokens > self.max_positions:
            raise ValueError(f"{tokens} tokens are more than max_positions={self.max_positions}")

    def content(
        self, q: Float[Tensor, "batch heads queries head_dim"]
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """The queries as they meet keys."""
        return q if self.sinusoids is None else self.sinusoids.content(q)

    def terms(self, q: Float[Tensor, "batch heads queries head_dim"], keys: int) -> Terms:
        """B and C, where the last query stands at the last key."""
        distance = distances(q.shape[2], keys, device=q.device)
        bias = None
        if self.sinusoids is not None:
            # the future needs one column alone
            listed = distance[: keys + 1] if self.causal else distance
            bias = relative_shift(self.sinusoids.products(q, listed), keys)
        factors = None if self.factors is None else self.factors.by_distance(distance)
        return Terms(factors, self._biases_by_distance(distance), bias)

    def maps(
        self, q: Float[Tensor, "batch heads queries head_dim"], positions: Int[Tensor, "batch queries"], keys: int
    ) -> tuple[Float[Tensor, "batch heads queries keys"] | None, Float[Tensor, "batch heads queries keys"] | None]:
        """C and B as maps, for queries at positions of their own over keys at 0, 1, ...; the future means nothing."""
        place = torch.arange(keys, device=q.device) - positions[..., None]
        place = place.clamp(1 - min(keys, self.max_positions), 0)
        factors = None if self.factors is None else self.factors(place).permute(0, 3, 1, 2)
        if self.biases is not None:
            return factors, self.biases(place).permute(0, 3, 1, 2)
        if self.slopes is not None:
            return factors, q.new_tensor(self.slopes)[:, None, None] * place[:, None].to(q.dtype)
        if self.sinusoids is not None:
            listed = torch.arange(1 - keys, 1, device=q.device)
            columns = (place + keys - 1)[:, None].expand(-1, q.shape[1], -1, -1)
            return factors, self.sinusoids.products(q, listed).gather(3, columns)
        return factors, None

    def _biases_by_distance(self, distance: Int[Tensor, " offsets"]) -> Float[Tensor, "heads offsets"] | None:
        if self.biases is not None:
            return self.biases.by_distance(distance)
        if self.slopes is None:
            return None
        slopes = torch.tensor(self.slopes, dtype=torch.float64, device=distance.device)
        return -slopes[:, None] * distance.abs()
