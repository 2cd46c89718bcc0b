"""Which row of a table a distance between positions belongs to: one of its own, or one shared with similar distances.

Paper: "Your Transformer May Not be as Powerful as You Expect", Luo et al., NeurIPS 2022,
https://arxiv.org/abs/2205.13401; the shared rows grow with the logarithm of the distance as in "Exploring the Limits
of Transfer Learning with a Unified Text-to-Text Transformer", Raffel et al., JMLR 2020,
https://arxiv.org/abs/1910.10683. Compared with lsj2408/URPE@47b711f8,
`fairseq/modules/transformer_sentence_encoder.py:relative_position_bucket`, and what its encoder does with the result.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

Relation = Literal["unique", "log"]
RELATIONS: tuple[Relation, ...] = ("unique", "log")
GAP = 2
"""How far the rows of distances from 0 on are moved: the two rows between them and the past belong to no distance."""


def check_relation(relation: str, *, max_positions: int, num_buckets: int, max_distance: int) -> None:
    """Refuse a table that cannot be built.

    Raises:
        ValueError: an unknown relation, no position, or buckets that leave no distance to share.
    """
    if relation not in RELATIONS:
        raise ValueError(f"a relation must be one of {', '.join(RELATIONS)}, got {relation!r}")
    if max_positions < 1:
        raise ValueError(f"max_positions must be positive, got {max_positions}")
    if relation == "log":
        if num_buckets < 4 or num_buckets % 2:
            raise ValueError(f"num_buckets must be an even number of at least 4, got {num_buckets}")
        if max_distance <= num_buckets // 4:
            raise ValueError(f"max_distance must exceed num_buckets // 4 = {num_buckets // 4}, got {max_distance}")


def log_buckets(distance: Int[Tensor, "*shape"], *, num_buckets: int, max_distance: int) -> Int[Tensor, "*shape"]:
    """Signed buckets, half of `num_buckets` on either side of 0.

    With H = `num_buckets // 2`: |r| < H / 2 have a bucket of their own, larger ones share H / 2 + floor(H / 2
    log(|r| / (H / 2)) / log(`max_distance` / (H / 2))), at most H - 1; the sign is that of r.
    """
    half = num_buckets // 2
    exact = half // 2
    far = distance.abs()
    # in float32 as in the compared code, so that distances at the border of two buckets fall on its side
    shared = (far.clamp(min=exact).float() / exact).log() / math.log(max_distance / exact) * (half - exact)
    bucket = torch.where(far < exact, far, (exact + shared.long()).clamp(max=half - 1))
    return bucket * distance.sign()


def lowest_bucket(max_positions: int, *, num_buckets: int, max_distance: int) -> int:
    """The bucket that has row 0: that of the furthest distance back."""
    if max_positions == 1:
        return GAP
    furthest = torch.tensor([1 - max_positions], device="cpu")
    return int(log_buckets(furthest, num_buckets=num_buckets, max_distance=max_distance))


def log_rows(
    distance: Int[Tensor, "*shape"], *, num_buckets: int, max_distance: int, lowest: int
) -> Int[Tensor, "*shape"]:
    """Rows of a table of `num_buckets + 1`, from the furthest distance back on.

    Args:
        distance: key minus query, less than `max_positions` either way.
        num_buckets: as for `log_buckets`.
        max_distance: as for `log_buckets`.
        lowest: from `lowest_bucket`.
    """
    bucket = log_buckets(distance, num_buckets=num_buckets, max_distance=max_distance)
    return torch.where(bucket >= 0, bucket + GAP, bucket) - lowest
