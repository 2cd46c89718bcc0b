"""The state of linear attention while decoding: one matrix per head, whatever the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.contract import State, state
from regard.ops.linear_attention import (
    empty_linear_state,
    linear_attention_step,
    linear_attention_with_state,
)


@state
class LinearState(State):
    """Sums of k^T v over the tokens so far, decayed where the mechanism decays; in at least float32."""

    kv: Float[Tensor, "batch heads head_dim state_dim"]
    """`state_dim` is the values' width; with a normaliser one more, the sum of the keys' features."""

    def step(
        self,
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch heads tokens head_dim"],
        v: Float[Tensor, "batch heads tokens value_dim"],
        *,
        slopes: Sequence[float] | None = None,
        normaliser_eps: float | None = None,
        mask: Bool[Tensor, "batch tokens"] | None = None,
        block_size: int | None = None,
    ) -> tuple[Float[Tensor, "batch heads tokens value_dim"], LinearState]:
        """New tokens after those of this state: one by the direct path, several in blocks.

        Args:
            q: queries, or their features.
            k: keys, or their features.
            v: values.
            slopes: decay per head; None = none.
            normaliser_eps: added to the sum of each row's weights; None = no normaliser.
            mask: True on the prefix of each row that is real.
            block_size: tokens in a block; None = the fastest.

        Raises:
            ValueError: shapes that do not fit.
        """
        counts = q.shape[2] if mask is None else mask.sum(dim=1)
        if q.shape[2] == 1:
            mixed, kv = linear_attention_step(q, k, v, self.kv, slopes=slopes, normaliser_eps=normaliser_eps, mask=mask)
        else:
            mixed, kv = linear_attention_with_state(
                q,
                k,
                v,
                self.kv,
                slopes=slopes,
                normaliser_eps=normaliser_eps,
                mask=mask,
                block_size=block_size,
            )
        return mixed, LinearState(position=self.position + counts, kv=kv)


def empty_state(
    batch: int, *, num_heads: int, head_dim: int, value_dim: int, normalised: bool, like: Tensor
) -> LinearState:
    """A state without tokens, on the device of `like` and in at least float32.

    Raises:
        ValueError: `batch` is not positive.
    """
    kv = empty_linear_state(
        batch, num_heads=num_heads, head_dim=head_dim, value_dim=value_dim, normalised=normalised, like=like
    )
    return LinearState(position=kv.new_zeros(batch, dtype=torch.int64), kv=kv)
