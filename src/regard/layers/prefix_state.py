"""The state of prefix softmax attention while decoding: per head a peak, a sum of weights and a weighted sum."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.contract import State, state
from regard.ops.prefix_softmax import (
    empty_prefix_sums,
    prefix_softmax_step,
    prefix_softmax_with_state,
)


@state
class PrefixState(State):
    """2 * heads + heads * value_dim numbers per row in at least float32, however many tokens were seen."""

    peak: Float[Tensor, "batch heads 1"]
    """The largest score so far."""
    total: Float[Tensor, "batch heads 1"]
    """The sum of the weights, relative to the peak."""
    weighted: Float[Tensor, "batch heads value_dim"]
    """The weighted sum of the values, relative to the peak."""

    def extend(
        self,
        scores: Float[Tensor, "batch heads tokens"],
        values: Float[Tensor, "batch heads tokens value_dim"],
        mask: Bool[Tensor, "batch tokens"] | None,
    ) -> tuple[Float[Tensor, "batch heads tokens value_dim"], PrefixState]:
        """The outputs of several new tokens, and the state after them; `mask` is True where a token is real."""
        counts = scores.shape[2] if mask is None else mask.sum(dim=1)
        mixed, after = prefix_softmax_with_state(scores, values, self, mask=mask)
        return mixed, PrefixState(self.position + counts, *after)

    def advance(
        self,
        score: Float[Tensor, "batch heads 1"],
        value: Float[Tensor, "batch heads value_dim"],
        mask: Bool[Tensor, "batch 1"] | None,
    ) -> tuple[Float[Tensor, "batch heads value_dim"], PrefixState]:
        """The output of one new token, by the direct path, and the state after it."""
        counts = 1 if mask is None else mask.sum(dim=1)
        mixed, after = prefix_softmax_step(score, value, self, mask=mask)
        return mixed, PrefixState(self.position + counts, *after)


def empty_prefix_state(batch: int, *, num_heads: int, value_dim: int, like: Tensor) -> PrefixState:
    """A state without tokens, in at least float32, on the device of `like`.

    Raises:
        ValueError: `batch` is not positive.
    """
    empty = empty_prefix_sums(batch, num_heads=num_heads, value_dim=value_dim, like=like)
    return PrefixState(torch.zeros(batch, dtype=torch.int64, device=like.device), *empty)
