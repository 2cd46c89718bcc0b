"""A long-term memory as a context of attention in segments: what is read for a segment stands before it.

Paper: "Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663,
section 4.1, equations 21 to 25. For a segment S of a sequence

    h = M(q(S)) at the memory before it,  y = attention([p ; h ; S]),  M learns y,  o = y (x) M(y) at the one after it

Read to the letter, every token would see what was read for later tokens of its segment, and be gated by a memory that
has learned them. To keep the future out, token i sees h up to its own place, and is gated by the memory after token i
of the segment; the gradients of all of them are taken at the segment's start, so a chunk is a segment.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import State, state
from regard.layers.head_norm import HeadNorm
from regard.layers.neural_memory import FILTER_WIDTH, MemoryState, NeuralMemory, shifted
from regard.layers.row_alignment import align_rows, take_along
from regard.ops.heads import head_width, merge_heads, split_heads
from regard.ops.memory_network import memory_widths, read_memory
from regard.ops.neural_memory import Memory, Rates, neural_memory_macs, neural_memory_with_state, stand_still
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_attention

Heads = Float[Tensor, "batch heads tokens head_dim"]
Keys = Float[Tensor, "batch heads keys head_dim"]
Persistent = Float[Tensor, "1 heads persistent head_dim"]


class SegmentTokens(NamedTuple):
    """What a segment's own tokens bring along: all heads are `(batch, heads, tokens, head_dim)`."""

    q: Heads
    k: Heads
    v: Heads
    recall: Heads
    """Queries of the memory."""


@state
class ContextMemoryState(State):
    """A memory, and the segment under way: its size does not depend on the number of tokens."""

    memory: MemoryState
    before: Float[Tensor, "batch past dim"]
    """What the convolution of the tokens' own queries still sees."""
    k: Float[Tensor, "batch heads segment head_dim"]
    v: Float[Tensor, "batch heads segment head_dim"]
    read_k: Float[Tensor, "batch heads segment head_dim"]
    """Keys of what was read for the segment's tokens."""
    read_v: Float[Tensor, "batch heads segment head_dim"]


class ContextMemory(nn.Module):
    """Attention in segments over persistent tokens, what the memory holds for the segment, and the segment.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        memory: learns a segment as one chunk.
        num_persistent: learned tokens before every segment.
        rope_base: base of the rotary embedding of places in `[p ; h ; S]`; None = no positions.

    Raises:
        ValueError: sizes that do not divide, or a rotary embedding with an odd head width.
    """

    def __init__(
        self, dim: int, *, num_heads: int, memory: NeuralMemory, num_persistent: int, rope_base: float | None
    ) -> None:
        super().__init__()
        self.dim, self.num_heads, self.head_dim = dim, num_heads, head_width(dim, num_heads)
        check_rotary(self.head_dim, rope_base)
        if num_persistent < 0:
            raise ValueError(f"num_persistent must not be negative, got {num_persistent}")
        self.segment_len, self.num_persistent, self.rope_base = memory.chunk_size, num_persistent, rope_base
        self.memory = memory
        self.persistent = nn.Parameter(torch.randn(num_persistent, dim)) if num_persistent else None
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.read_norm = HeadNorm(self.head_dim)
        self.y_proj = nn.Linear(dim, dim, bias=False)

    # -- whole sequences

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> tuple[Heads, Heads]:
        """Attention's result, and what the memory holds for it, per head."""
        places = torch.arange(x.shape[1], device=x.device) % self.segment_len
        own, _ = self._own(x, places[None], None)
        memory, always = self.memory.first_memory(x.shape[0]), self._always()
        behind = x.new_zeros(x.shape[0], self.memory.past, 3 * self.dim)
        attended, recalled = [], []
        for parts in zip(*(part.split(self.segment_len, dim=2) for part in own), strict=True):
            segment = SegmentTokens(*parts)
            length = segment.q.shape[2]
            read_k, read_v = self._read(segment.recall, memory, torch.arange(length, device=x.device)[None])
            y = self._attend(segment.q, (read_k, segment.k), (read_v, segment.v), always, None)
            mixed = self.y_proj(merge_heads(y))
            stream = torch.cat((behind, self.memory.project(mixed)), dim=1)
            inputs = self.memory.inputs(mixed, stream[:, self.memory.past :], behind)
            reads, memory = self._learn(inputs.q, inputs.k, inputs.v, inputs.rates, memory, None)
            attended.append(split_heads(mixed, self.num_heads))
            recalled.append(reads)
            behind = stream[:, length:]
        return torch.cat(attended, dim=2), torch.cat(recalled, dim=2)

    def _own(
        self, x: Tensor, places: Int[Tensor, "#batch tokens"], before: Tensor | None
    ) -> tuple[SegmentTokens, Tensor]:
        """The tokens' own queries, keys, values and memory queries; and the last before their convolution."""
        q, k, v = (split_heads(proj(x), self.num_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        recall = self.memory.project_queries(x)
        at = places + self.num_persistent + self.segment_len
        return SegmentTokens(self._turned(q, at), self._turned(k, at), v, self.memory.queries(recall, before)), recall

    def _turned(self, x: Tensor, places: Int[Tensor, "#batch tokens"]) -> Tensor:
        return x if self.rope_base is None else rotate(x, places, base=self.rope_base)

    def _always(self) -> tuple[Persistent, Persistent]:
        """Keys and values of the persistent tokens, of one row."""
        tokens = self.q_proj.weight.new_zeros(0, self.dim) if self.persistent is None else self.persistent
        # a copy, since counting FLOPs refuses a module whose input is a view of a parameter
        x = tokens[None].clone()
        k, v = (split_heads(proj(x), self.num_heads) for proj in (self.k_proj, self.v_proj))
        return self._turned(k, torch.arange(self.num_persistent, device=x.device)[None]), v

    def _read(self, recall: Heads, memory: Memory, places: Int[Tensor, "#batch tokens"]) -> tuple[Heads, Heads]:
        """Keys and values of what the memory held at the segment's start."""
        start = memory.start
        reads = read_memory(recall.to(start[0].dtype), start, residual_norm=self.memory.residual_norm)
        h = merge_heads(self.read_norm(reads.to(recall.dtype)))
        k, v = (split_heads(proj(h), self.num_heads) for proj in (self.k_proj, self.v_proj))
        return self._turned(k, places + self.num_persistent), v

    def _attend(
        self,
        q: Heads,
        keys: tuple[Keys, Keys],
        values: tuple[Keys, Keys],
        always: tuple[Persistent, Persistent],
        rows: Int[Tensor, "batch tokens"] | None,
    ) -> Heads:
        """Attention over `[p ; h ; S]`; a query at place i sees h and S up to i. `rows` are the queries' places."""
        batch, length = q.shape[0], keys[0].shape[2]
        k, v = (
            torch.cat((before.expand(batch, -1, -1, -1), *(part.to(q.dtype) for part in parts)), dim=2)
            for before, parts in zip(always, (keys, values), strict=True)
        )
        columns = torch.arange(length, device=q.device)
        places = columns[None] if rows is None else rows
        causal = columns <= places[..., None]
        persistent = causal.new_ones(*causal.shape[:2], self.num_persistent)
        visible = torch.cat((persistent, causal, causal), dim=-1)[:, None]
        return softmax_attention(q, k, v, visible=visible)

    def _learn(
        self, q: Heads, k: Heads, v: Heads, rates: Rates, memory: Memory, filled: Int[Tensor, " batch"] | None
    ) -> tuple[Heads, Memory]:
        return neural_memory_with_state(
            q,
            k,
            v,
            rates,
            memory,
            chunk_size=self.segment_len,
            residual_norm=self.memory.residual_norm,
            limit=self.memory.max_surprise,
            recompute=self.memory.recompute,
            filled=filled,
        )

    # -- states

    def init_state(self, batch: int) -> ContextMemoryState:
        """The memory before the first token, and an empty segment."""
        memory = self.memory.begin()[1].expand(batch)
        like = self.q_proj.weight
        slots = [like.new_zeros(batch, self.num_heads, self.segment_len, self.head_dim) for _ in range(4)]
        past = self.memory.past
        return ContextMemoryState(
            position=memory.position.clone(),
            memory=memory,
            before=like.new_zeros(batch, past, self.dim),
            k=slots[0],
            v=slots[1],
            read_k=slots[2],
            read_v=slots[3],
        )

    def step(
        self,
        x: Float[Tensor, "batch tokens dim"],
        state: ContextMemoryState,
        *,
        mask: Bool[Tensor, "batch tokens"] | None,
    ) -> tuple[Heads, Heads, ContextMemoryState]:
        """New tokens after those of the state; `forward`'s results, and the state after them."""
        tokens = x.shape[1]
        counts = torch.full_like(state.position, tokens) if mask is None else mask.sum(dim=1)
        phase = state.position % self.segment_len
        places = (phase[:, None] + torch.arange(tokens, device=x.device)) % self.segment_len
        own, recall = self._own(x, places, state.before)
        before = shifted(state.before, recall, counts)
        advance = self._one if tokens == 1 else self._several
        attended, recalled, slots, memory = advance(own, state, phase, counts, mask)
        after = ContextMemoryState(
            position=state.position + counts,
            memory=memory,
            before=before,
            k=slots[0],
            v=slots[1],
            read_k=slots[2],
            read_v=slots[3],
        )
        return attended, recalled, after

    def _one(
        self, own: SegmentTokens, state: ContextMemoryState, phase: Tensor, counts: Tensor, mask: Tensor | None
    ) -> tuple[Heads, Heads, list[Tensor], MemoryState]:
        """One token against the segment under way."""
        read_k, read_v = self._read(own.recall, state.memory.memory, phase[:, None])
        here = torch.arange(self.segment_len, device=phase.device) == phase[:, None]
        if mask is not None:
            here = here & mask
        slots = [
            torch.where(here[:, None, :, None], new.to(old.dtype), old)
            for old, new in zip(
                (state.k, state.v, state.read_k, state.read_v), (own.k, own.v, read_k, read_v), strict=True
            )
        ]
        y = self._attend(own.q, (slots[2], slots[0]), (slots[3], slots[1]), self._always(), phase[:, None])
        mixed = self.y_proj(merge_heads(y))
        reads, memory = self.memory.step(mixed, state.memory, mask=mask)
        return split_heads(mixed, self.num_heads), reads, slots, memory

    def _several(
        self, own: SegmentTokens, state: ContextMemoryState, phase: Tensor, counts: Tensor, mask: Tensor | None
    ) -> tuple[Heads, Heads, list[Tensor], MemoryState]:
        """Several tokens, laid out so that the segments of all rows begin at the same places."""
        length, tokens = self.segment_len, own.q.shape[2]
        aligned = align_rows(phase, counts, tokens=tokens, chunk_size=length)
        placed = [aligned.place(part, dim=2).split(length, dim=2) for part in own]
        memory, always = state.memory.memory, self._always()
        columns = torch.arange(length, device=phase.device)
        past = self.memory.past
        # behind the rows' own last projections, which stand right before their first token
        behind = state.memory.before
        held = [part.to(own.k.dtype) for part in (state.k, state.v, state.read_k, state.read_v)]
        attended, recalled, slots, streams = [], [], [], []
        for number, parts in enumerate(zip(*placed, strict=True)):
            segment = SegmentTokens(*parts)
            real = aligned.real[:, number * length : (number + 1) * length]
            new = [segment.k, segment.v, *self._read(segment.recall, memory, columns[None])]
            if number == 0:
                earlier = (columns < phase[:, None])[:, None, :, None]
                new = [torch.where(earlier, old, part) for old, part in zip(held, new, strict=True)]
            y = self._attend(segment.q, (new[2], new[0]), (new[3], new[1]), always, None)
            mixed = self.y_proj(merge_heads(y))
            stream = torch.cat((behind.to(mixed.dtype), self.memory.project(mixed)), dim=1)
            if number == 0:
                place = torch.arange(past + length, device=phase.device)
                shift = (place - phase[:, None]).clamp_min(0)
                stream = take_along(stream, torch.where(place < phase[:, None] + past, shift, place), dim=1)
            inputs = self.memory.inputs(mixed, stream[:, past:], stream[:, :past])
            reads, memory = self._learn(
                inputs.q, inputs.k, inputs.v, stand_still(inputs.rates, real), memory, aligned.filled - number * length
            )
            behind = stream[:, length:]
            attended.append(split_heads(mixed, self.num_heads))
            recalled.append(reads)
            slots.append(new)
            streams.append(stream[:, past:] if number else stream)
        last = (aligned.filled // length).clamp_max(len(slots) - 1)[:, None] * length + columns
        kept = [take_along(torch.cat(each, dim=2), last, dim=2).to(state.k.dtype) for each in zip(*slots, strict=True)]
        ends = aligned.filled[:, None] + torch.arange(past, device=phase.device)
        after = MemoryState(
            position=state.memory.position + counts,
            before=take_along(torch.cat(streams, dim=1), ends, dim=1).to(state.memory.before.dtype),
            **memory._asdict(),
        )
        back = [aligned.back(torch.cat(each, dim=2), dim=2) for each in (attended, recalled)]
        return back[0], back[1], kept, after


def context_memory_macs(options: SimpleNamespace, *, batch: int, tokens: int) -> int:
    """MACs of `ContextMemory`; `options` are a mixer's constructor arguments."""
    dim, heads, segment = options.dim, options.num_heads, options.segment_len
    width, persistent = dim // heads, options.num_persistent
    widths = memory_widths(width, depth=options.memory_depth, expansion=options.expansion)
    per_read = sum(into * out for into, out in pairwise(widths)) + width * options.residual_norm
    rates = (1 + options.momentum + options.forgetting) * heads
    filters = 4 * dim * FILTER_WIDTH if options.convolution else 0
    total = tokens * (10 * dim**2 + dim * rates + filters + heads * per_read)
    for start in range(0, tokens, segment):
        length = min(segment, tokens - start)
        total += 2 * length * (persistent + 2 * length) * dim
        total += heads * neural_memory_macs(
            tokens=length,
            widths=widths,
            chunk_size=segment,
            residual_norm=options.residual_norm,
            momentum=options.momentum,
            advance=True,
        )
    return batch * total + 2 * persistent * dim**2
