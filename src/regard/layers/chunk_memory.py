"""The neural memory of the best-kept public implementation, which departs from Titans' paper: one update per chunk.

Code: lucidrains/titans-pytorch@cc016ebc, `titans_pytorch/neural_memory.py` (`NeuralMemory`). Paper: "Titans: Learning
to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663; `NeuralMemory` of
`regard.layers.neural_memory` follows the paper.

    surprise_j = -grad sum_{t in chunk j} lr_t mean((M_W(k_t) - v_t)^2)
    m_j = eta_j m_{j-1} + surprise_j,     U_j = (1 - alpha_j) U_{j-1} + m_j,     U_0 = the first weights

where W are the weights that the call begins with, or, with `batch_size`, those committed at its last multiple. Token t
is read with the weights after the first floor((t + 1) / chunk) chunks; so a token sees its own chunk only if it is the
chunk's last. Tokens of an unfinished chunk wait in the state.
Different from the code: heads have weights of their own (there they are views of one tensor, which cannot be trained
apart or loaded), and a state may be continued by any number of tokens (there a continuation of several tokens must
begin at a chunk). Left out: its options that none of its stored cases hold (attention pools, rates per weight, gated
commits, clipped gradients, weights shared between layers, other memory networks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad

from regard.contract import load_strictly
from regard.ops.heads import merge_heads, split_heads
from regard.ops.memory_network import Weights, memory_widths, read_memory, surprise
from regard.ops.neural_memory import running_products

BLOCK = 64
"""Chunks whose updates are computed by one product of matrices."""


@dataclass(frozen=True)
class ChunkMemoryState:
    """A chunk memory under way; rows are at the same position.

    Args:
        position: tokens so far.
        weights: the committed weights, where gradients are taken.
        last: U, the newest weights.
        momentum: m.
        waiting: tokens of the unfinished chunk.
    """

    position: int
    weights: Weights
    last: Weights
    momentum: Weights
    waiting: Float[Tensor, "batch waiting dim"]


@dataclass(frozen=True)
class Stored:
    """What storing gave, beside the state.

    Args:
        updates: U after 0, 1, ... chunks of this call, for every weight.
        losses: mean squared error of each stored token before its chunk's update.
        steps: lr of each stored token.
    """

    updates: tuple[Float[Tensor, "batch heads updates _in_width _out_width"], ...]
    losses: Float[Tensor, "batch heads tokens"]
    steps: Float[Tensor, "batch heads tokens"]


class ChunkMemory(nn.Module):
    """A neural memory per head that is updated once per chunk.

    Args:
        dim: width of the model.
        num_heads: number of heads.
        head_dim: width of a head; None = `dim`.
        chunk_size: tokens in a chunk.
        batch_size: tokens after which the updated weights become those at which gradients are taken; None = never
            within a call.
        depth: matrices of the memory.
        expansion: hidden width of the memory, in widths of a head.
        residual_norm: M(k) = k + norm(...) (1 + gain).
        qk_norm: RMSNorm with a gain per head on queries and keys.
        max_step: largest lr.

    Raises:
        ValueError: sizes that are not positive, one head of another width than `dim`, or a `batch_size` that is not a
            multiple of `chunk_size`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        head_dim: int | None = None,
        chunk_size: int = 1,
        batch_size: int | None = None,
        depth: int = 2,
        expansion: int = 4,
        residual_norm: bool = True,
        qk_norm: bool = False,
        max_step: float = 1.0,
    ) -> None:
        super().__init__()
        width = dim if head_dim is None else head_dim
        if min(dim, num_heads, chunk_size, width) < 1:
            raise ValueError(
                "sizes must be positive, got "
                f"dim={dim}, num_heads={num_heads}, head_dim={width}, chunk_size={chunk_size}"
            )
        if num_heads == 1 and width != dim:
            raise ValueError(f"one head has no projection back: head_dim must equal dim={dim}, got {width}")
        if batch_size is not None and (batch_size < 1 or batch_size % chunk_size):
            raise ValueError(f"batch_size must be a multiple of chunk_size={chunk_size}, got {batch_size}")
        self.num_heads, self.chunk_size, self.batch_size = num_heads, chunk_size, batch_size
        self.residual_norm, self.max_step = residual_norm, max_step
        inner = num_heads * width
        self.store_norm, self.retrieve_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.q_proj = nn.Linear(dim, inner, bias=False)
        self.k_proj = nn.Linear(dim, inner, bias=False)
        self.v_proj = nn.Linear(dim, inner, bias=False)
        self.q_gain = nn.Parameter(torch.zeros(num_heads, 1, width)) if qk_norm else None
        self.k_gain = nn.Parameter(torch.zeros(num_heads, 1, width)) if qk_norm else None
        self.step_proj = nn.Linear(dim, num_heads)
        self.momentum_proj = nn.Linear(dim, num_heads)
        self.decay_proj = nn.Linear(dim, num_heads)
        self.head_gate = nn.Linear(dim, num_heads, bias=False) if num_heads > 1 else None
        self.o_proj = nn.Linear(inner, dim, bias=False) if num_heads > 1 else None
        widths = memory_widths(width, depth=depth, expansion=expansion)
        self.weights = nn.ParameterList(torch.empty(num_heads, *pair) for pair in pairwise(widths))
        self.gain = nn.Parameter(torch.zeros(num_heads, 1, width)) if residual_norm else None
        for weight in self.weights:
            for head in weight:
                nn.init.xavier_uniform_(head)

    def init_state(self, batch: int) -> ChunkMemoryState:
        """The learned weights, and nothing stored."""
        own: list[Tensor] = [*self.weights, *([] if self.gain is None else [self.gain])]
        weights = tuple(weight.expand(batch, *weight.shape) for weight in own)
        waiting = self.store_norm.weight.new_zeros(batch, 0, self.store_norm.weight.shape[0])
        return ChunkMemoryState(0, weights, weights, tuple(torch.zeros_like(w) for w in weights), waiting)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], state: ChunkMemoryState | None = None
    ) -> tuple[Float[Tensor, "batch tokens dim"], ChunkMemoryState, Stored]:
        """What is read for every token, the state after them, and what was stored.

        Args:
            x: the tokens.
            state: what came before; None = nothing.

        Raises:
            ValueError: another number of rows than the state's.
        """
        state = self.init_state(x.shape[0]) if state is None else state
        if x.shape[0] != state.waiting.shape[0]:
            raise ValueError(f"state has {state.waiting.shape[0]} rows and x has {x.shape[0]}: they must be equal")
        after, stored = self._store(x, state)
        return self._retrieve(x, state.position, stored.updates), after, stored

    # -- storing

    def _store(self, x: Tensor, state: ChunkMemoryState) -> tuple[ChunkMemoryState, Stored]:
        waiting = torch.cat((state.waiting, x), dim=1)
        first = state.position - state.waiting.shape[1]
        whole = waiting.shape[1] // self.chunk_size * self.chunk_size
        weights, last, momentum = state.weights, state.last, state.momentum
        updates = [tuple(weight[:, :, None] for weight in last)]
        losses, steps = [], []
        for begin, end in pairwise(self._commits(first, whole)):
            found, loss, step, rates = self._surprises(waiting[:, begin:end], weights)
            for part in range(0, found[0].shape[2], BLOCK):
                cut = slice(part, part + BLOCK)
                made, momentum = _update(
                    tuple(each[:, :, cut] for each in found), [rate[..., cut] for rate in rates], last, momentum
                )
                last = tuple(each[:, :, -1] for each in made)
                updates.append(made)
            losses.append(loss)
            steps.append(step)
            if self.batch_size is not None and (first + end) % self.batch_size == 0:
                weights = last
        joined = tuple(torch.cat(each, dim=2) for each in zip(*updates, strict=True))
        none = x.new_zeros(x.shape[0], self.num_heads, 0)
        after = ChunkMemoryState(state.position + x.shape[1], weights, last, momentum, waiting[:, whole:])
        return after, Stored(joined, torch.cat([none, *losses], dim=2), torch.cat([none, *steps], dim=2))

    def _commits(self, first: int, whole: int) -> list[int]:
        """Where new weights are committed among `whole` tokens, the first of which is number `first`; and both ends."""
        if whole == 0:
            return []
        if self.batch_size is None:
            return [0, whole]
        next_commit = self.batch_size - first % self.batch_size
        return [0, *range(next_commit, whole, self.batch_size), whole]

    def _surprises(self, x: Tensor, weights: Weights) -> tuple[Weights, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Negative gradients of whole chunks; losses and lr of their tokens; log(1 - alpha) and log eta of chunks."""
        x = self.store_norm(x)
        k = _head_norm(split_heads(self.k_proj(x), self.num_heads), self.k_gain)
        v = split_heads(self.v_proj(x), self.num_heads)
        step = torch.sigmoid(self.step_proj(x)).transpose(1, 2) * self.max_step
        pooled = x.unflatten(1, (-1, self.chunk_size)).mean(dim=2)
        rates = (
            logsigmoid(-self.decay_proj(pooled)).transpose(1, 2),
            logsigmoid(self.momentum_proj(pooled)).transpose(1, 2),
        )
        found = surprise(k, v, weights, residual_norm=self.residual_norm)
        scale = (step / v.shape[-1])[..., None]

        def chunks(tokens: Tensor) -> Tensor:
            return tokens.unflatten(2, (-1, self.chunk_size))

        gradients = tuple(
            chunks(inputs).mT @ chunks(-scale * delta) for inputs, delta in zip(found.x, found.delta, strict=True)
        )
        return gradients, found.error.square().mean(dim=-1), step, rates

    # -- retrieving

    def _retrieve(self, x: Tensor, position: int, updates: Weights) -> Tensor:
        """Read token t with the weights after its number of whole chunks."""
        normed = self.retrieve_norm(x)
        q = _head_norm(split_heads(self.q_proj(normed), self.num_heads), self.q_gain)
        # the token before a chunk's end is the last that is read with the weights before it
        lead = (position + 1) % self.chunk_size
        filled = pad(q, (0, 0, lead, -(lead + q.shape[2]) % self.chunk_size))
        by_chunk = filled.unflatten(2, (-1, self.chunk_size))
        skipped = int(lead == 0 and position > 0) if self.chunk_size > 1 else 1
        weights = tuple(each[:, :, skipped : skipped + by_chunk.shape[2]] for each in updates)
        reads = read_memory(by_chunk, weights, residual_norm=self.residual_norm).flatten(2, 3)
        reads = reads[:, :, lead : lead + q.shape[2]]
        if self.head_gate is None or self.o_proj is None:
            return merge_heads(reads)
        gate = torch.sigmoid(self.head_gate(normed)).transpose(1, 2)[..., None]
        return self.o_proj(merge_heads(reads * gate))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load lucidrains' layout, strictly; its `memory_model` repeats the first head's weights and is left out.

        Raises:
            KeyError: an unknown or a missing key, named.
        """
        load_strictly(
            self,
            {
                self.own_name(key): self._own_shape(key, value)
                for key, value in state_dict.items()
                if not key.startswith("memory_model.")
            },
        )

    def own_name(self, key: str) -> str:
        """Our name of one of lucidrains' parameters."""
        if key.startswith("memory_model_parameters."):
            number = int(key.rpartition(".")[2]) - self.residual_norm
            return "gain" if number < 0 else f"weights.{number}"
        for theirs, ours in REFERENCE_NAMES.items():
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        return key

    def _own_shape(self, key: str, value: Tensor) -> Tensor:
        return value[:, None] if self.own_name(key) == "gain" and value.ndim == 2 else value


REFERENCE_NAMES = {
    "to_queries.": "q_proj.",
    "to_keys.": "k_proj.",
    "to_values.": "v_proj.",
    "q_norm.gamma": "q_gain",
    "k_norm.gamma": "k_gain",
    "to_adaptive_step.0.": "step_proj.",
    "to_momentum.0.": "momentum_proj.",
    "to_decay_factor.0.": "decay_proj.",
    "retrieve_gate.0.": "head_gate.",
    "combine_heads.": "o_proj.",
}
"""How lucidrains names what has another name here."""


def _head_norm(x: Tensor, gain: Tensor | None) -> Tensor:
    if gain is None:
        return x
    return torch.nn.functional.rms_norm(x, x.shape[-1:]) * (1 + gain)


def _update(surprises: Weights, rates: list[Tensor], last: Weights, momentum: Weights) -> tuple[Weights, Weights]:
    """U after each of some chunks, and m after the last: both recurrences as products of lower triangles."""
    log_keep, log_momentum = rates
    keep, decay = running_products(log_keep), running_products(log_momentum)
    mix = keep @ decay
    from_first = log_momentum.cumsum(dim=-1).exp()[..., None]
    carried, kept = keep @ from_first, log_keep.cumsum(dim=-1).exp()[..., None]
    made, held = [], []
    for new, weight, before in zip(surprises, last, momentum, strict=True):
        flat, first, past = new.flatten(3), weight.flatten(2)[:, :, None], before.flatten(2)[:, :, None]
        made.append((mix @ flat + kept * first + carried * past).view_as(new))
        held.append((decay[..., -1:, :] @ flat + from_first[..., -1:, :] * past).view_as(before))
    return tuple(made), tuple(held)
