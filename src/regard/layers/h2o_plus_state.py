"""The state of H2O with full steps in between ("++"): what has stayed, and beside it all keys and all scores.

A baseline of "Recycled Attention", Xu, Goyal and Choi, 2024, https://arxiv.org/abs/2411.05787: at every S-th token
after a prompt all keys are attended to, and those that stay are chosen from all of them again.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.contract import State, state, static
from regard.layers.h2o_state import H2OState, Keys, Mask, Mixed, Queries, Values, empty_h2o_state
from regard.layers.kv_cache import KVCache, empty_cache
from regard.ops.grouped_attention import group_weights, weigh_values
from regard.ops.heavy_hitters import attend_and_score, heavy_or_recent


@state
class H2OPlusState(State):
    """What H2O carries, all keys, and the weight that each has received."""

    kept: H2OState
    cache: KVCache
    scores: Float[Tensor, "batch kv_heads capacity"]
    """The last column stays 0: what belongs to no key is written there."""
    steps: Int[Tensor, " batch"]
    """Single tokens since the prompt, by which the schedule goes."""
    steps_of_all: int = static()
    """The same where all rows are equal, known without looking."""

    def advance(
        self, q: Queries, k: Keys, v: Values, *, stride: int, mask: Mask | None = None
    ) -> tuple[Mixed, H2OPlusState]:
        """New tokens: several are a prompt, which attends in full; of single ones every `stride`-th does.

        Args:
            q: queries, with their positions.
            k: keys, with their positions.
            v: values.
            stride: tokens from one full step to the next.
            mask: True on the prefix of each row that is real; a row with a single real token goes by the schedule.
        """
        cache = self.cache.append(k, v, mask)
        scores = torch.nn.functional.pad(self.scores, (0, cache.keys.shape[2] + 1 - self.scores.shape[2]))
        after = replace(self, cache=cache, position=cache.position, scores=scores)
        if q.shape[2] == 1:
            return after._decode(q, k, v, mask, stride)
        counts = None if mask is None else mask.sum(dim=1)
        mixed, after = after._prompt(q, k, v, mask, before=self)
        if counts is None:
            return mixed, after
        single = counts == 1
        first, after = after._decode(q[:, :, :1], k[:, :, :1], v[:, :, :1], single[:, None], stride)
        first = torch.where(single[:, None, None, None], first, mixed[:, :, :1])
        return torch.cat((first, mixed[:, :, 1:]), dim=2), after

    def _prompt(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, before: H2OPlusState
    ) -> tuple[Mixed, H2OPlusState]:
        held, past = before.cache.filled, None
        if held:
            past = (torch.arange(held, device=q.device) < before.position[:, None])[:, None]
            old_keys, old_values = before.cache.read()
            k, v = torch.cat((old_keys.to(k.dtype), k), dim=2), torch.cat((old_values.to(v.dtype), v), dim=2)
        mixed, received = attend_and_score(q, k, v, past=past, real=mask)
        slots = before.position[:, None] + torch.arange(q.shape[2], device=q.device)
        index = slots[:, None].expand(-1, k.shape[1], -1)
        scores = self.scores.scatter_add(2, index, received[..., held:].to(self.scores.dtype))
        scores = torch.cat((scores[..., :held] + received[..., :held], scores[..., held:]), dim=2)
        after = replace(self, scores=scores)
        if mask is None:
            return mixed, replace(after._chosen_anew(), steps=torch.zeros_like(self.steps), steps_of_all=0)
        rows = mask.sum(dim=1) > 1
        chosen = after._chosen_anew().kept.where(rows, self.kept)
        steps = torch.where(rows, 0, self.steps)
        scores = torch.where(rows[:, None, None], scores, self.scores)
        return mixed, replace(after, kept=chosen, scores=scores, steps=steps, steps_of_all=0)

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, stride: int) -> tuple[Mixed, H2OPlusState]:
        first = self.kept.position == 0
        if not self.cache.ragged:
            number = 0 if self.cache.filled == 1 else self.steps_of_all + 1
            after = replace(self, steps=torch.full_like(self.steps, number), steps_of_all=number)
            return after._full_step(q) if number % stride == 0 else after._kept_step(q, k, v, None)
        rows = torch.ones_like(first) if real is None else real[:, 0]
        numbers = torch.where(first, 0, self.steps + 1)
        due = rows & (numbers % stride == 0)
        after = replace(self, steps=torch.where(rows, numbers, self.steps))
        # looking at the device costs less than a full step that no row needs
        rows_due = -1 if torch.compiler.is_compiling() else int(due.sum())
        if rows_due == len(due):
            return after._full_step(q)
        mixed, others = after._kept_step(q, k, v, rows[:, None])
        if rows_due == 0:
            return mixed, others
        in_full, full = after._full_step(q)
        scores = torch.where(due[:, None, None], full.scores, others.scores)
        mixed = torch.where(due[:, None, None, None], in_full, mixed)
        return mixed, replace(others, kept=full.kept.where(due, others.kept), scores=scores)

    def _full_step(self, q: Tensor) -> tuple[Mixed, H2OPlusState]:
        keys, values = self.cache.read()
        stored = self._stored() if self.cache.ragged else None
        weights = group_weights(q, keys, visible=None if stored is None else stored[:, :, None])
        received = weights.detach().sum(dim=(2, 3))
        scores = self.scores + torch.nn.functional.pad(received, (0, self.scores.shape[2] - received.shape[2]))
        after = replace(self, scores=scores.to(self.scores.dtype))._chosen_anew()
        return weigh_values(weights, values).to(q.dtype), after

    def _kept_step(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None) -> tuple[Mixed, H2OPlusState]:
        mixed, full = self.kept.attend_one(q, k, v, real)
        held, trash = full.places >= 0, self.scores.shape[2] - 1
        index, scores = torch.where(held, full.places, trash), torch.where(held, full.scores, 0)
        return mixed, replace(self, kept=full.without_worst(), scores=self.scores.scatter(2, index, scores))

    def _stored(self) -> Bool[Tensor, "batch 1 keys"]:
        return (torch.arange(self.cache.filled, device=self.position.device) < self.position[:, None])[:, None]

    def _chosen_anew(self) -> H2OPlusState:
        """With those that stay chosen from all keys."""
        keys, values = self.cache.read()
        scores = self.scores[..., : self.cache.filled]
        numbers = torch.arange(self.cache.filled, device=scores.device)
        places = torch.where(self._stored(), numbers, -1).expand(scores.shape)
        chosen = heavy_or_recent(scores, places, self.position, self.kept.cache_size)
        return replace(self, kept=self.kept.chosen_from(keys, values, places, scores, chosen, self.position))


def empty_h2o_plus_state(
    batch: int,
    *,
    cache_size: int,
    num_kv_heads: int,
    head_dim: int,
    value_dim: int,
    max_len: int | None,
    like: Tensor,
) -> H2OPlusState:
    """A state without tokens; arguments as for `empty_cache`, `cache_size` keys stay.

    Raises:
        ValueError: `batch`, `cache_size` or `max_len` is not positive.
    """
    sizes = {"num_kv_heads": num_kv_heads, "head_dim": head_dim, "value_dim": value_dim}
    cache = empty_cache(batch, **sizes, max_len=max_len, like=like)
    kept = empty_h2o_state(batch, cache_size=cache_size, **sizes, like=like)
    return H2OPlusState(
        position=cache.position.clone(),
        kept=kept,
        cache=cache,
        scores=kept.scores.new_zeros(batch, num_kv_heads, cache.keys.shape[2] + 1),
        steps=torch.zeros_like(cache.position),
        steps_of_all=0,
    )
