"""The long-term memory's layer: projections, short convolutions, rates, learned first weights, and its state.

Paper: "Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663,
sections 3.1 to 3.3 and 4.4. Every head has a memory of its own.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, normalize, silu
from torch.utils import _pytree as pytree

from regard.contract import State, state
from regard.layers.row_alignment import align_rows, take_along
from regard.ops.causal_convolution import causal_convolution
from regard.ops.heads import head_width, split_heads
from regard.ops.memory_network import Weights, memory_widths
from regard.ops.neural_memory import (
    Memory,
    Rates,
    neural_memory,
    neural_memory_macs,
    neural_memory_step,
    neural_memory_with_state,
    stand_still,
)
from regard.ops.precision import compute_dtype

FILTER_WIDTH = 4
"""Tokens under the short convolutions (section 4.4)."""
STEP_BIAS, KEEP_BIAS, MOMENTUM_BIAS = -4.0, 5.0, -1.0
"""Biases of the rates before training: steps of 0.018, since a chunk adds up the gradients of all its tokens; 0.7 % of
the memory forgotten per token, a quarter of the momentum kept."""


@state
class MemoryState(State):
    """A memory under way: its size does not depend on the number of tokens."""

    start: tuple[Float[Tensor, "batch heads _in_width _out_width"], ...]
    """Weights at the start of the chunk under way, at least float32."""
    weights: tuple[Float[Tensor, "batch heads _in_width _out_width"], ...]
    """The newest weights."""
    momentum: tuple[Float[Tensor, "batch heads _in_width _out_width"], ...]
    """Past surprise; empty without momentum."""
    before: Float[Tensor, "batch past channels"]
    """What the convolutions still see: the last projections."""

    @property
    def memory(self) -> Memory:
        """What the operator carries."""
        return Memory(self.start, self.weights, self.momentum)

    def expand(self, batch: int) -> MemoryState:
        """One row's state for all rows, in memory of its own."""
        return self.reorder(self.position.new_zeros(batch))


class MemoryInputs(NamedTuple):
    """What the operator takes in."""

    q: Float[Tensor, "batch heads tokens head_dim"]
    k: Float[Tensor, "batch heads tokens head_dim"]
    v: Float[Tensor, "batch heads tokens head_dim"]
    rates: Rates


class NeuralMemory(nn.Module):
    """A neural memory per head, from a token's vector to what is read for it.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        memory_depth: L_M, matrices of the memory; 1 = a linear memory.
        expansion: hidden width of the memory, in widths of a head.
        residual_norm: M(k) = k + norm(...) (1 + gain) in place of the bare perceptron.
        momentum: past surprise counts.
        forgetting: the memory decays.
        convolution: short convolutions on queries, keys and values.
        max_surprise: largest norm of one token's gradient by one weight; None = any.
        chunk_size: tokens whose gradients are taken at the same weights.
        recompute: compute chunks anew in backward.

    Raises:
        ValueError: sizes that are not positive or do not divide.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        memory_depth: int,
        expansion: int,
        residual_norm: bool,
        momentum: bool,
        forgetting: bool,
        convolution: bool,
        max_surprise: float | None,
        chunk_size: int,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.head_dim, self.num_heads = head_width(dim, num_heads), num_heads
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be positive, got {chunk_size}")
        self.residual_norm, self.momentum, self.forgetting = residual_norm, momentum, forgetting
        if max_surprise is not None and max_surprise <= 0:
            raise ValueError(f"max_surprise must be positive, got {max_surprise}")
        self.max_surprise, self.chunk_size, self.recompute = max_surprise, chunk_size, recompute
        widths = memory_widths(self.head_dim, depth=memory_depth, expansion=expansion)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.rates = nn.Linear(dim, (1 + momentum + forgetting) * num_heads)
        self.filter = nn.Parameter(torch.zeros(FILTER_WIDTH, 3 * dim)) if convolution else None
        self.weights = nn.ParameterList(torch.empty(num_heads, *pair) for pair in pairwise(widths))
        self.gain = nn.Parameter(torch.zeros(num_heads, 1, self.head_dim)) if residual_norm else None
        self._initialise()

    def _initialise(self) -> None:
        biases = [STEP_BIAS, *[KEEP_BIAS] * self.forgetting, *[MOMENTUM_BIAS] * self.momentum]
        with torch.no_grad():
            for weight in self.weights:
                for head in weight:
                    nn.init.xavier_uniform_(head)
            self.rates.weight.mul_(0.1)
            self.rates.bias.copy_(torch.tensor(biases).repeat_interleave(self.num_heads))
            if self.filter is not None:
                # begins near the identity, so that a token's own projection dominates
                self.filter.normal_(std=0.1)
                self.filter[-1] += 1

    # -- from tokens to what the operator takes in

    @property
    def past(self) -> int:
        """Earlier projections that the convolutions see."""
        return 0 if self.filter is None else FILTER_WIDTH - 1

    def project(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens three_dims"]:
        """Queries, keys and values before their convolution."""
        return self.qkv(x)

    def project_queries(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Queries alone, before their convolution."""
        return linear(x, self.qkv.weight[: x.shape[-1]])

    def queries(
        self, projected: Float[Tensor, "batch tokens dim"], before: Float[Tensor, "batch past dim"] | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Convolved, activated and normalised queries."""
        kernel = None if self.filter is None else self.filter[:, : projected.shape[-1]]
        q = silu(_convolved(projected, kernel, before))
        return normalize(split_heads(q, self.num_heads), dim=-1)

    def inputs(
        self,
        x: Float[Tensor, "batch tokens dim"],
        projected: Float[Tensor, "batch tokens three_dims"],
        before: Float[Tensor, "batch past three_dims"] | None,
    ) -> MemoryInputs:
        """What the operator takes in, from tokens and their projections."""
        mixed = silu(_convolved(projected, self.filter, before))
        q, k, v = (split_heads(part, self.num_heads) for part in mixed.chunk(3, dim=-1))
        return MemoryInputs(normalize(q, dim=-1), normalize(k, dim=-1), v, self.token_rates(x))

    def token_rates(self, x: Float[Tensor, "batch tokens dim"]) -> Rates:
        """theta, log(1 - alpha) and log eta of every token and head."""
        raw = self.rates(x).to(compute_dtype(x)).transpose(1, 2).split(self.num_heads, dim=1)
        log_keep = logsigmoid(raw[1]) if self.forgetting else None
        log_momentum = logsigmoid(raw[-1]) if self.momentum else None
        return Rates(torch.sigmoid(raw[0]), log_keep, log_momentum)

    # -- a sequence, a state

    def first_memory(self, batch: int) -> Memory:
        """The learned weights, and no momentum."""
        own: list[Tensor] = [*self.weights, *([] if self.gain is None else [self.gain])]
        own = [weight.to(compute_dtype(weight)) for weight in own]
        weights: Weights = tuple(weight.expand(batch, *weight.shape) for weight in own)
        momentum: Weights = tuple(torch.zeros_like(weight) for weight in weights) if self.momentum else ()
        return Memory(weights, weights, momentum)

    def begin(
        self, prefix: Float[Tensor, "tokens dim"] | None = None
    ) -> tuple[Float[Tensor, "1 heads tokens head_dim"] | None, MemoryState]:
        """The state of one row before its first token, and what is read for the prefix.

        Args:
            prefix: persistent tokens: they are memorised, as a chunk of their own, before anything else.
        """
        like = self.qkv.weight
        position = torch.zeros(1, dtype=torch.int64, device=like.device)
        before = like.new_zeros(1, self.past, like.shape[0])
        memory = self.first_memory(1)
        if prefix is None:
            return None, MemoryState(position=position, before=before, **memory._asdict())
        # a copy, since counting FLOPs refuses a module whose input is a view of a parameter
        x = prefix[None].clone()
        projected = self.project(x)
        q, k, v, rates = self.inputs(x, projected, before)
        reads, memory = neural_memory_with_state(
            q,
            k,
            v,
            rates,
            memory,
            chunk_size=prefix.shape[0],
            residual_norm=self.residual_norm,
            limit=self.max_surprise,
        )
        before = torch.cat((before, projected), dim=1)[:, projected.shape[1] :]
        return reads, MemoryState(position=position, before=before, **memory._asdict())

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], state: MemoryState
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """What is read for every token, after `begin`'s state for one row."""
        state = pytree.tree_map(lambda tensor: tensor.expand(x.shape[0], *tensor.shape[1:]), state)
        q, k, v, rates = self.inputs(x, self.project(x), state.before)
        return neural_memory(
            q,
            k,
            v,
            rates,
            state.memory,
            chunk_size=self.chunk_size,
            residual_norm=self.residual_norm,
            limit=self.max_surprise,
            recompute=self.recompute,
        )

    def step(
        self, x: Float[Tensor, "batch tokens dim"], state: MemoryState, *, mask: Bool[Tensor, "batch tokens"] | None
    ) -> tuple[Float[Tensor, "batch heads tokens head_dim"], MemoryState]:
        """New tokens after those of the state: one by the recurrence, several in chunks."""
        tokens = x.shape[1]
        projected = self.project(x)
        inputs = self.inputs(x, projected, state.before)
        counts = torch.full_like(state.position, tokens) if mask is None else mask.sum(dim=1)
        phase = state.position % self.chunk_size
        if tokens == 1:
            reads, memory = self.advance(inputs, state.memory, ends_chunk=phase == self.chunk_size - 1, mask=mask)
        else:
            aligned = align_rows(phase, counts, tokens=tokens, chunk_size=self.chunk_size)
            q, k, v = (aligned.place(part, dim=2) for part in inputs[:3])
            rates = (None if rate is None else aligned.place(rate, dim=2) for rate in inputs.rates[:3])
            reads, memory = neural_memory_with_state(
                q,
                k,
                v,
                stand_still(Rates(*rates), aligned.real),  # type: ignore[arg-type]
                state.memory,
                chunk_size=self.chunk_size,
                residual_norm=self.residual_norm,
                limit=self.max_surprise,
                recompute=self.recompute,
                filled=aligned.filled,
            )
            reads = aligned.back(reads, dim=2)
        before = shifted(state.before, projected, counts)
        return reads, replace(state, position=state.position + counts, before=before, **memory._asdict())

    def advance(
        self, inputs: MemoryInputs, memory: Memory, *, ends_chunk: Tensor, mask: Bool[Tensor, "batch 1"] | None
    ) -> tuple[Float[Tensor, "batch heads 1 head_dim"], Memory]:
        """One token; a masked one changes nothing."""
        rates = inputs.rates if mask is None else stand_still(inputs.rates, mask)
        ends = ends_chunk if mask is None else ends_chunk & mask[:, 0]
        return neural_memory_step(
            inputs.q,
            inputs.k,
            inputs.v,
            rates,
            memory,
            ends_chunk=ends,
            residual_norm=self.residual_norm,
            limit=self.max_surprise,
        )


def memory_layer_macs(options: SimpleNamespace, *, batch: int, tokens: int) -> int:
    """MACs of `NeuralMemory.begin` for one row and `forward` for all; `options` are a mixer's constructor arguments."""
    dim, heads = options.dim, options.num_heads
    widths = memory_widths(dim // heads, depth=options.memory_depth, expansion=options.expansion)
    rates = (1 + options.momentum + options.forgetting) * heads
    per_token = 3 * dim**2 + dim * rates + (3 * dim * FILTER_WIDTH if options.convolution else 0)
    sizes = {"widths": widths, "residual_norm": options.residual_norm, "momentum": options.momentum}
    prefix = options.num_persistent
    before = heads * neural_memory_macs(tokens=prefix, chunk_size=prefix, advance=True, **sizes) if prefix else 0
    after = heads * neural_memory_macs(tokens=tokens, chunk_size=options.chunk_size, advance=False, **sizes)
    return batch * (tokens * per_token + after) + prefix * per_token + before


def shifted(
    before: Float[Tensor, "batch past channels"], new: Float[Tensor, "batch tokens channels"], counts: Tensor
) -> Float[Tensor, "batch past channels"]:
    """The last `past` real tokens after `counts` new ones."""
    past = before.shape[1]
    index = torch.arange(past, device=before.device) + counts[:, None]
    return take_along(torch.cat((before, new.to(before.dtype)), dim=1), index, dim=1)


def _convolved(x: Tensor, kernel: Tensor | None, before: Tensor | None) -> Tensor:
    return x if kernel is None else causal_convolution(x, kernel, None if before is None else before.to(x.dtype))
