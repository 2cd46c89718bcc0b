"""A learned number for every head and every relation of two positions, which depends on their distance alone.

Paper: "Your Transformer May Not be as Powerful as You Expect", Luo et al., NeurIPS 2022,
https://arxiv.org/abs/2205.13401, where two such tables make the biases B and the factors C. Compared with
lsj2408/URPE@47b711f8, `fairseq/modules/transformer_sentence_encoder.py:TransformerSentenceEncoder` (`rp_bias`,
`ur_rp_bias`). Different from the code: a causal table has no rows for the future where every distance has its own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.ops.relative_buckets import Relation, check_relation, log_rows, lowest_bucket


class RelativeTable(nn.Module):
    """`(rows, heads)` numbers, looked up by distance.

    Args:
        num_heads: number of heads.
        relation: "unique", a row for every distance, or "log", rows that are shared by similar distances.
        max_positions: one more than the largest distance.
        num_buckets: for "log": buckets of both sides; the table has one row more.
        max_distance: for "log": the distance from which on all share the last bucket.
        causal: distances to the future are never asked for.
        mean: what all numbers begin near.
        std: standard deviation around it.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        num_heads: int,
        *,
        relation: Relation = "unique",
        max_positions: int = 512,
        num_buckets: int = 64,
        max_distance: int = 128,
        causal: bool = False,
        mean: float = 0.0,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads must be positive, got {num_heads}")
        check_relation(relation, max_positions=max_positions, num_buckets=num_buckets, max_distance=max_distance)
        self.relation, self.max_positions = relation, max_positions
        self.num_buckets, self.max_distance = num_buckets, max_distance
        if relation == "log":
            self.lowest = lowest_bucket(max_positions, num_buckets=num_buckets, max_distance=max_distance)
            rows = num_buckets + 1
        else:
            self.lowest = 1 - max_positions
            rows = max_positions if causal else 2 * max_positions - 1
        self.weight = nn.Parameter(torch.empty(rows, num_heads))
        self.mean, self.std = mean, std
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin near the mean."""
        nn.init.normal_(self.weight, mean=self.mean, std=self.std)

    def forward(self, distance: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape heads"]:
        """The numbers of distances, key minus query; beyond the table the last row's, which nobody should see."""
        if self.relation == "log":
            rows = log_rows(distance, num_buckets=self.num_buckets, max_distance=self.max_distance, lowest=self.lowest)
        else:
            rows = distance - self.lowest
        return nn.functional.embedding(rows.clamp(0, self.weight.shape[0] - 1), self.weight)

    def by_distance(self, distance: Int[Tensor, " offsets"]) -> Float[Tensor, "heads offsets"]:
        """The numbers of a list of distances, head by head."""
        return self(distance).T

    def extra_repr(self) -> str:
        """The relation and the size."""
        rows, heads = self.weight.shape
        return f"{rows}, {heads}, relation={self.relation!r}, max_positions={self.max_positions}"
