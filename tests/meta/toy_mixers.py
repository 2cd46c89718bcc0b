"""Small correct mixers, written for the checks alone: the ground in which defects are planted."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from regard import Example, FeatureMixer, No, SequenceMixer, State, Traits, state


@state
class ToyState(State):
    keys: Tensor
    values: Tensor
    real: Tensor


class ToySoftmax(SequenceMixer):
    """Softmax attention by its formula, with a state that concatenates."""

    traits = Traits()
    example = Example(kwargs={"dim": 6, "num_heads": 2}, batch=2, tokens=11, context=7)

    def __init__(
        self, dim: int, *, num_heads: int = 2, causal: bool = False, qkv_bias: bool = True, proj_drop: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def inert_parameters(self) -> set[str]:
        return {"k_proj.bias"}

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def visible(self, queries: int, keys: int, mask: Tensor | None, segments: Tensor | None) -> Tensor:
        seen = torch.ones(1, 1, queries, keys, dtype=torch.bool)
        if self.causal:
            seen = seen.tril(keys - queries)
        if mask is not None:
            seen = seen & mask[:, None, None, :]
        if segments is not None:
            runs = nn.functional.pad((segments[:, 1:] != segments[:, :-1]).cumsum(1), (1, 0))
            seen = seen & (runs[:, :, None] == runs[:, None, :])[:, None]
        return seen

    def attend(self, q: Tensor, k: Tensor, seen: Tensor, bias: Tensor | None = None) -> Tensor:
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias
        nothing = ~seen.any(dim=-1, keepdim=True)
        return torch.where(nothing, 0, scores.masked_fill(~(seen | nothing), -torch.inf).softmax(dim=-1))

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        source = x if context is None else context
        q, k = self.split(self.q_proj(x)), self.split(self.k_proj(source))
        return self.attend(q, k, self.visible(x.shape[1], source.shape[1], mask, segments), bias)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        return self.split(self.v_proj(x if context is None else context))

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        weights = self.weights(x, context=context, mask=mask, segments=segments, bias=bias)
        return weights.to(x.dtype) @ self.values(x, context=context).to(x.dtype)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.proj_drop(self.o_proj(mixed.transpose(1, 2).flatten(2)))

    def init_state(self, batch: int, *, max_len: int | None = None) -> ToyState:
        like = self.q_proj.weight
        empty = like.new_zeros(batch, self.num_heads, 0, self.dim // self.num_heads)
        position = torch.zeros(batch, dtype=torch.int64, device=like.device)
        return ToyState(position=position, keys=empty, values=empty.clone(), real=position[:, None][:, :0].bool())

    def mix_step(self, x: Tensor, state: ToyState, *, mask: Tensor | None) -> tuple[Tensor, ToyState]:
        q, k, v = (self.split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        new = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        after = replace(
            state,
            position=state.position + new.sum(dim=1),
            keys=torch.cat((state.keys, k), dim=2),
            values=torch.cat((state.values, v), dim=2),
            real=torch.cat((state.real, new), dim=1),
        )
        seen = self.visible(x.shape[1], after.keys.shape[2], after.real, None)
        return self.attend(q, after.keys, seen) @ after.values, after

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        return batch * (2 * (tokens + keys) * options.dim**2 + 2 * tokens * keys * options.dim)


class ToyGate(FeatureMixer):
    """Every channel is scaled by a function of all channels' means."""

    traits = Traits.of_feature_mixer(spatial_dims=(1, 2, 3))
    example = Example(kwargs={"channels": 5}, batch=2, space=(7, 3, 5))

    def __init__(self, channels: int, *, drop: float = 0.0) -> None:
        super().__init__(channels)
        self.fc = nn.Linear(channels, channels)
        self.drop = nn.Dropout(drop)

    def gate(self, x: Tensor) -> Tensor:
        means = x.flatten(2).mean(dim=2)
        return self.drop(self.fc(means).sigmoid()).reshape(*means.shape, *[1] * (x.ndim - 2))

    def mix(self, x: Tensor, *, context: Tensor | None) -> Tensor:
        return x * self.gate(x)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        return batch * options.channels**2


class ToyPositions(FeatureMixer):
    """Every position is a mean of all positions of a second map, weighed by likeness: a feature mixer with a map."""

    traits = Traits.of_feature_mixer(spatial_dims=(2,), has_map=True, row_stochastic=True, cross=True, time="n^2")
    example = Example(kwargs={"channels": 3}, batch=2, space=(5, 7))

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.q_proj = nn.Linear(channels, channels, bias=False)

    def attention_map(self, x: Tensor, *, context: Tensor) -> Tensor:
        q, k = self.q_proj(x.flatten(2).mT), context.flatten(2)
        return (q @ k).softmax(dim=-1)[:, None]

    def mix(self, x: Tensor, *, context: Tensor | None) -> Tensor:
        assert context is not None
        return (self.attention_map(x, context=context)[:, 0] @ context.flatten(2).mT.to(x.dtype)).mT.reshape(x.shape)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        positions = space[0] * space[1]
        return batch * (positions * options.channels**2 + 2 * positions**2 * options.channels)


NOT_YET = No("a toy that does one thing only")


class ToyRunningMean(SequenceMixer):
    """The mean of all values so far: a mixer with hardly any capability."""

    traits = Traits(
        bidirectional=No("the mean runs over the past"),
        cross=No("the mean runs over the past"),
        masks=NOT_YET,
        segments=NOT_YET,
        bias=No("has no scores"),
        decodes=NOT_YET,
        step_exact=NOT_YET,
        has_map=NOT_YET,
        row_stochastic=NOT_YET,
        time="n",
    )
    example = Example(kwargs={"dim": 3, "num_heads": 1}, batch=2, tokens=11)

    def __init__(self, dim: int, *, num_heads: int = 1, causal: bool = True) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.v_proj = nn.Linear(dim, dim)

    def mix(self, x: Tensor, **_: Any) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return (self.v_proj(x).cumsum(dim=1) / counts)[:, None]

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        return mixed[:, 0]

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        return batch * tokens * options.dim**2
