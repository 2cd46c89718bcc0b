"""The state of H2O while decoding: the keys that have stayed and their scores, in memory of constant size.

There is one slot more than keys that stay: a step writes its token there, then empties the slot of the key that goes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.contract import State, state, static
from regard.ops.grouped_attention import group_weights, weigh_values
from regard.ops.heavy_hitters import attend_and_score, heavy_or_recent
from regard.ops.precision import compute_dtype
from regard.ops.recycled import in_order, take_keys

Queries = Float[Tensor, "batch heads tokens head_dim"]
Keys = Float[Tensor, "batch kv_heads tokens head_dim"]
Values = Float[Tensor, "batch kv_heads tokens value_dim"]
Mixed = Float[Tensor, "batch heads tokens value_dim"]
Mask = Bool[Tensor, "batch tokens"]


@state
class H2OState(State):
    """Keys and values that have stayed, which tokens they are, and the weight that they have received."""

    keys: Float[Tensor, "batch kv_heads slots head_dim"]
    values: Float[Tensor, "batch kv_heads slots value_dim"]
    places: Int[Tensor, "batch kv_heads slots"]
    """Position of the token in each slot, -1 in an empty one."""
    scores: Float[Tensor, "batch kv_heads slots"]
    is_empty: bool = static()

    @property
    def cache_size(self) -> int:
        """How many keys stay."""
        return self.keys.shape[2] - 1

    def carried(self) -> Int[Tensor, "batch kv_heads cache_size"]:
        """Positions of the keys that have stayed, in order, -1 at the end where there are fewer."""
        return in_order(self.places)[..., :-1]

    def keys_read(self) -> Int[Tensor, " batch"]:
        """How many keys the latest token of each row attended to if it came alone, its own among them."""
        return self.position.clamp(max=self.cache_size + 1)

    def advance(self, q: Queries, k: Keys, v: Values, *, mask: Mask | None = None) -> tuple[Mixed, H2OState]:
        """New tokens attend to what has stayed and to each other; then what is too much goes.

        Args:
            q: queries, with their positions.
            k: keys, with their positions.
            v: values.
            mask: True on the prefix of each row that is real.
        """
        if q.shape[2] > 1:
            return self._advance_many(q, k, v, mask)
        mixed, full = self.attend_one(q, k, v, mask)
        return mixed, full.without_worst()

    def attend_one(self, q: Queries, k: Keys, v: Values, mask: Mask | None) -> tuple[Mixed, H2OState]:
        """A single token; nothing goes, and no slot may be left empty."""
        # the first empty slot: there always is one
        slot = (self.places < 0).int().argmax(dim=-1, keepdim=True)
        keys, values = _written(self.keys, k, slot), _written(self.values, v, slot)
        places = self.places.scatter(2, slot, _numbers(self.position, k, mask))
        weights = group_weights(q, keys, visible=(places >= 0)[:, :, None])
        received = weights.detach().sum(dim=(2, 3))
        scores = self.scores.scatter(2, slot, 0.0) + (received if mask is None else received * mask[:, :, None])
        position = self.position + (1 if mask is None else mask[:, 0])
        return weigh_values(weights, values).to(q.dtype), H2OState(
            position, keys, values, places, scores, is_empty=False
        )

    def without_worst(self) -> H2OState:
        """Where no slot is empty, the one with the lowest score is emptied, the latest tokens' excepted."""
        old = self.places < (self.position - self.cache_size // 2)[:, None, None]
        worst = self.scores.masked_fill(~old, torch.inf).argmin(dim=-1, keepdim=True)
        full = (self.places >= 0).all(dim=-1, keepdim=True)
        left = torch.where(full, -1, self.places.gather(2, worst))
        return replace(self, places=self.places.scatter(2, worst, left))

    def _advance_many(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Mixed, H2OState]:
        places = _numbers(self.position, k, mask)
        scores = torch.zeros_like(places, dtype=self.scores.dtype)
        past = None
        if not self.is_empty:
            past = self.places >= 0
            k, v = torch.cat((self.keys.to(k.dtype), k), dim=2), torch.cat((self.values.to(v.dtype), v), dim=2)
            places, scores = torch.cat((self.places, places), dim=2), torch.cat((self.scores, scores), dim=2)
        mixed, received = attend_and_score(q, k, v, past=past, real=mask)
        scores = scores + received
        position = self.position + (q.shape[2] if mask is None else mask.sum(dim=1))
        chosen = heavy_or_recent(scores, places, position, self.cache_size)
        return mixed, self.chosen_from(k, v, places, scores, chosen, position)

    def chosen_from(
        self,
        keys: Keys,
        values: Values,
        places: Int[Tensor, "batch kv_heads tokens"],
        scores: Float[Tensor, "batch kv_heads tokens"],
        chosen: Int[Tensor, "batch kv_heads cache_size"],
        position: Int[Tensor, " batch"],
    ) -> H2OState:
        """A state of these keys in place of the stored ones, and an empty slot.

        Args:
            keys: of all tokens to choose from.
            values: theirs.
            places: their positions.
            scores: theirs.
            chosen: indices of those that stay, -1 where there are fewer.
            position: tokens so far.
        """
        inside = chosen.clamp(min=0)
        kept = torch.where(chosen < 0, -1, places.gather(2, inside))
        roomy = torch.nn.functional.pad
        return H2OState(
            position,
            keys=roomy(take_keys(keys, chosen), (0, 0, 0, 1)).to(self.keys.dtype),
            values=roomy(take_keys(values, chosen), (0, 0, 0, 1)).to(self.values.dtype),
            places=roomy(kept, (0, 1), value=-1),
            scores=roomy(scores.gather(2, inside), (0, 1)).to(self.scores.dtype),
            is_empty=False,
        )

    def where(self, rows: Bool[Tensor, " batch"], other: H2OState) -> H2OState:
        """The rows of this state that `rows` names, and the other's elsewhere."""
        keys = torch.where(rows[:, None, None, None], self.keys, other.keys)
        values = torch.where(rows[:, None, None, None], self.values, other.values)
        places = torch.where(rows[:, None, None], self.places, other.places)
        scores = torch.where(rows[:, None, None], self.scores, other.scores)
        position = torch.where(rows, self.position, other.position)
        return H2OState(position, keys, values, places, scores, is_empty=self.is_empty and other.is_empty)


def empty_h2o_state(
    batch: int, *, cache_size: int, num_kv_heads: int, head_dim: int, value_dim: int, like: Tensor
) -> H2OState:
    """A state without tokens, in the dtype and on the device of `like`.

    Raises:
        ValueError: `batch` or `cache_size` is not positive.
    """
    if batch < 1 or cache_size < 1:
        raise ValueError(f"batch and cache_size must be positive, got batch={batch} and cache_size={cache_size}")
    shape = (batch, num_kv_heads, cache_size + 1)
    return H2OState(
        position=torch.zeros(batch, dtype=torch.int64, device=like.device),
        keys=like.new_zeros(*shape, head_dim),
        values=like.new_zeros(*shape, value_dim),
        places=torch.full(shape, -1, device=like.device),
        scores=like.new_zeros(shape, dtype=compute_dtype(like)),
        is_empty=True,
    )


def _numbers(position: Tensor, k: Tensor, mask: Tensor | None) -> Int[Tensor, "batch kv_heads tokens"]:
    """Positions of new tokens for each key head, -1 where they are not real."""
    numbers = position[:, None] + torch.arange(k.shape[2], device=k.device)
    if mask is not None:
        numbers = torch.where(mask, numbers, -1)
    return numbers[:, None].repeat(1, k.shape[1], 1)


def _written(buffer: Tensor, new: Tensor, slot: Int[Tensor, "batch kv_heads 1"]) -> Tensor:
    index = slot[..., None].expand(new.shape)
    new = new.to(buffer.dtype)
    return buffer.scatter(2, index, new) if torch.is_grad_enabled() else buffer.scatter_(2, index, new)
