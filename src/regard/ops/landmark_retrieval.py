"""Retrieving blocks by their landmarks: scores, positions, the choice, and attention to what is chosen.

Paper: "Landmark Attention", Mohtashami and Jaggi, NeurIPS 2023, https://arxiv.org/abs/2305.16300, sections 3.2 and 3.3.
Compared with epfml/landmark-attention@d963e504, `lm_benchmark/models/caches/mem_cache.py` (`MemLMCacheStorage`).

Blocks are numbered in time, from 0. The positions are stingy: the newest `top_k` blocks keep their distance from the
query, all older ones share the place before them, and the chosen ones are moved together there. Only the difference
between the positions of a query and of a key counts, so queries are turned by it and stored keys stay as they are.

Scores within 1e-5 of each other are a tie, and the newest block wins. In a network's first layer all landmarks have the
same key, and all old blocks the same place: there every choice among them is such a tie.
Different from the code: where at most `top_k` blocks are stored, all of them are at their own positions, as in the
authors' code for LLaMA, and attention is exact; with `as_compared` they are one block nearer, so that the newest shares
the positions of the query's block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.heads import repeat_heads
from regard.ops.landmark_attention import landmark_bias
from regard.ops.landmark_sections import check_block_size, is_landmark, sections_of_places
from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.rotary import rotate

Selection = Literal["per_token_and_head", "max_over_heads", "max_over_tokens"]
SELECTIONS: tuple[Selection, ...] = ("per_token_and_head", "max_over_heads", "max_over_tokens")
TIE = 1e-5
"""Scores, or logarithms of probabilities, that are no further apart are equal: what a product's rounding may do."""
_BEYOND = 1 << 40
"""More than any number of a block."""


@dataclass(frozen=True)
class Retrieval:
    """What is retrieved, and how it is positioned.

    Args:
        block_size: ordinary tokens in a block.
        top_k: blocks that a query retrieves; 0 = none.
        selection: each query and head choose by themselves; or by the largest probability over heads, or over tokens.
        rope_base: base of the rotary embedding; None = no positions.
        as_compared: place the blocks as the compared code does where it has no more than `top_k`.

    Raises:
        ValueError: a size out of range, or an unknown selection.
    """

    block_size: int
    top_k: int
    selection: Selection = "per_token_and_head"
    rope_base: float | None = None
    as_compared: bool = False

    def __post_init__(self) -> None:
        check_block_size(self.block_size)
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 blocks, got {self.top_k}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {self.selection!r}")

    @property
    def span(self) -> int:
        """Tokens of a block, its landmark included."""
        return self.block_size + 1


# --------------------------------------------------------------------------------------------------- positions


def numbers_in_slots(counts: Int[Tensor, " batch"], slots: int) -> Int[Tensor, "batch slots"]:
    """The block in each slot of a ring that `counts` blocks have been written to in turn; negative where none is."""
    newest = counts[:, None] - 1
    return newest - (newest - torch.arange(slots, device=counts.device)) % slots


def query_place(counts: Int[Tensor, " batch"], sizes: Retrieval) -> Int[Tensor, " batch"]:
    """The place, counted in blocks, where the query's block begins."""
    return counts.clamp(max=sizes.top_k + 1)


def places_for_scoring(
    numbers: Int[Tensor, "batch slots"], counts: Int[Tensor, " batch"], sizes: Retrieval
) -> Int[Tensor, "batch slots"]:
    """The place of each block while it is scored."""
    ages = counts[:, None] - 1 - numbers
    newest = sizes.top_k if sizes.as_compared else query_place(counts, sizes)[:, None] - 1
    return (newest - ages).clamp(min=0)


def places_of_chosen(
    chosen: Int[Tensor, "batch heads tokens chosen"], counts: Int[Tensor, " batch"], sizes: Retrieval
) -> Int[Tensor, "batch heads tokens chosen"]:
    """The place of each chosen block: the i-th at i, one further if it is among the newest `top_k`."""
    blocks = counts[:, None, None, None]
    order = torch.arange(chosen.shape[-1], device=chosen.device) - (chosen < 0).sum(dim=-1, keepdim=True)
    moved = order + (blocks - 1 - chosen < sizes.top_k)
    return moved if sizes.as_compared else torch.where(blocks <= sizes.top_k, chosen, moved)


# --------------------------------------------------------------------------------------------------- queries


@dataclass(frozen=True)
class TurnedQueries:
    """Queries as keys at a distance of 0 to `top_k + 1` blocks see them, which carry no position of their block.

    Args:
        inside: towards keys that are turned by their place in the block.
        ends: towards keys of landmarks, which are not turned at all.
    """

    inside: Float[Tensor, "batch heads tokens distances head_dim"]
    ends: Float[Tensor, "batch heads tokens distances head_dim"]


@without_autocast
def turned_queries(
    q: Float[Tensor, "batch heads tokens head_dim"], rows: Int[Tensor, "batch tokens"], sizes: Retrieval
) -> TurnedQueries:
    """Queries in at least float32, divided by sqrt(head_dim), at all distances.

    Args:
        q: queries, not turned.
        rows: their places in their block, and beyond its end.
        sizes: the length of blocks, and how far away they can be.
    """
    many = sizes.top_k + 2
    each = (q.to(compute_dtype(q)) * q.shape[-1] ** -0.5)[:, :, :, None].expand(-1, -1, -1, 2 * many, -1)
    if sizes.rope_base is None:
        return TurnedQueries(each[..., :many, :], each[..., many:, :])
    offsets = sizes.span * torch.arange(many, device=q.device)
    offsets = torch.cat((offsets, offsets - sizes.block_size))
    positions = (rows[..., None] + offsets).flatten(1)
    turned = rotate(each.flatten(2, 3), positions, base=sizes.rope_base).unflatten(2, (-1, 2 * many))
    return TurnedQueries(turned[..., :many, :], turned[..., many:, :])


def at_distance(
    turned: Float[Tensor, "batch heads tokens distances head_dim"],
    distances: Int[Tensor, "batch someheads sometokens each"],
) -> Float[Tensor, "batch heads tokens each head_dim"]:
    """The queries at the given distances, in blocks."""
    index = distances[..., None].expand(*turned.shape[:3], -1, turned.shape[-1])
    return turned.gather(3, index)


# --------------------------------------------------------------------------------------------------- the choice


@torch.no_grad()
@without_autocast
def landmark_scores(
    turned: Float[Tensor, "batch heads tokens distances head_dim"],
    landmarks: Float[Tensor, "batch kv_heads slots head_dim"],
    *,
    counts: Int[Tensor, " batch"],
    sizes: Retrieval,
) -> Float[Tensor, "batch heads tokens slots"]:
    """Scores of the landmarks' keys; those in slots without a block are undefined, but finite.

    Args:
        turned: queries towards ends of blocks.
        landmarks: keys of landmarks in a ring, not turned.
        counts: blocks written to the ring.
        sizes: how they are positioned.
    """
    keys, slots = landmarks.to(turned.dtype), landmarks.shape[2]
    own = query_place(counts, sizes)[:, None]
    far = at_distance(turned, own[..., None, None])
    shared = far.reshape(len(keys), keys.shape[1], -1, keys.shape[3])
    scores = (shared @ keys.mT).view(*turned.shape[:3], slots)
    newest = min(sizes.top_k, slots)
    if sizes.rope_base is None or newest == 0:
        return scores
    numbers = counts[:, None] - 1 - torch.arange(newest, device=keys.device)
    places = numbers % slots
    near_keys = keys.gather(2, places[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3]))
    near = at_distance(turned, (own - places_for_scoring(numbers, counts, sizes))[:, None, None])
    products = (near * repeat_heads(near_keys, turned.shape[1])[:, :, None]).sum(dim=-1)
    return scores.scatter(3, places[:, None, None].expand(products.shape), products)


def pooled_scores(
    scores: Float[Tensor, "batch heads tokens slots"],
    numbers: Int[Tensor, "batch slots"],
    sizes: Retrieval,
    mask: Bool[Tensor, "batch tokens"] | None,
) -> Float[Tensor, "batch asking_heads asking_tokens slots"]:
    """What blocks are chosen by: the scores themselves, or the largest log-probabilities over heads or over tokens."""
    if sizes.selection == "per_token_and_head":
        return scores
    held = (numbers >= 0)[:, None, None]
    shares = scores.masked_fill(~held, -torch.inf).log_softmax(dim=-1).masked_fill(~held, -torch.inf)
    if sizes.selection == "max_over_heads":
        return shares.amax(dim=1, keepdim=True)
    if mask is not None:
        shares = shares.masked_fill(~mask[:, None, :, None], -torch.inf)
    return shares.amax(dim=2, keepdim=True)


def choose_blocks(
    scores: Float[Tensor, "batch heads tokens slots"], numbers: Int[Tensor, "batch slots"], top_k: int
) -> Int[Tensor, "batch heads tokens chosen"]:
    """The numbers of the `top_k` blocks with the largest scores, in time; -1, at the left, where there are fewer.

    Args:
        scores: what blocks are chosen by.
        numbers: the block in each slot; negative where none is.
        top_k: how many; at most the number of slots.
    """
    held = (numbers >= 0)[:, None, None]
    scores = scores.masked_fill(~held, -torch.inf)
    best = scores.topk(top_k, dim=-1).values
    least, slack = best[..., -1:], TIE * best[..., :1].abs().clamp(min=1)
    surely = (scores > least + slack) & held
    tied = (scores >= least - slack) & held
    order = torch.where(tied, numbers[:, None, None], -1)
    order = torch.where(surely, numbers[:, None, None] + _BEYOND, order)
    first = order.topk(top_k, dim=-1).values
    return torch.where(first >= _BEYOND, first - _BEYOND, first).sort(dim=-1).values


# --------------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True)
class Turns:
    """What turns keys by their places, the first of which is 0: three passes over the keys, which are many.

    Args:
        cosine: of the angle of each channel.
        sine: of the same, negative for the first half of the channels.
    """

    cosine: Float[Tensor, "places head_dim"]
    sine: Float[Tensor, "places head_dim"]

    def apply(self, k: Float[Tensor, "*batch keys head_dim"]) -> Float[Tensor, "*batch keys head_dim"]:
        """Keys at the first places."""
        first, second = k.chunk(2, dim=-1)
        keys = k.shape[-2]
        return torch.addcmul(k * self.cosine[:keys], torch.cat((second, first), dim=-1), self.sine[:keys])


def turns(places: int, like: Float[Tensor, "*batch head_dim"], sizes: Retrieval) -> Turns | None:
    """The turns of so many places, in at least float32; None without positions."""
    if sizes.rope_base is None:
        return None
    # a key whose halves are (1, 0) turns into cosines and sines
    unit = torch.ones(1, 1, places, like.shape[-1], dtype=compute_dtype(like), device=like.device)
    unit[..., like.shape[-1] // 2 :] = 0
    spots = torch.arange(places, device=like.device)[None]
    cosine, sine = rotate(unit, spots, base=sizes.rope_base)[0, 0].chunk(2, dim=-1)
    return Turns(torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1))


def local_logits(
    turned: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    *,
    rows: Int[Tensor, "batch tokens"],
    sizes: Retrieval,
) -> Float[Tensor, "batch heads tokens keys"]:
    """Scores of the unfinished block and the chunk behind it, with the bias that makes one softmax of them.

    Args:
        turned: queries at distance 0.
        k: keys, turned by their places; the first begins a block.
        rows: places of the queries among them.
        sizes: the length of blocks.
    """
    scores = turned @ k.mT
    if k.shape[2] <= sizes.span:
        columns = torch.arange(k.shape[2], device=k.device)
        hidden = (columns > rows[..., None]) | (columns == sizes.block_size)
        return scores.masked_fill(hidden[:, None], -torch.inf)
    sections = sections_of_places(rows, k.shape[2], block_size=sizes.block_size)
    return scores + landmark_bias(scores, sections, block_size=sizes.block_size)


def retrieved_logits(
    turned: Float[Tensor, "batch heads tokens distances head_dim"],
    k: Float[Tensor, "batch heads shared chosen span head_dim"],
    *,
    chosen: Int[Tensor, "batch heads shared chosen"],
    counts: Int[Tensor, " batch"],
    sizes: Retrieval,
) -> Float[Tensor, "batch heads tokens keys"]:
    """Scores of the chosen blocks, with the bias that makes one softmax of them; `keys` are all tokens of all blocks.

    Args:
        turned: queries towards keys inside of blocks.
        k: keys of the blocks, turned by their places inside; one choice for every token, or one for all.
        chosen: numbers of the blocks; -1 = none.
        counts: blocks that have been stored.
        sizes: how they are positioned.
    """
    batch, heads, shared, blocks, span, _ = k.shape
    distances = query_place(counts, sizes)[:, None, None, None] - places_of_chosen(chosen, counts, sizes)
    asking = at_distance(turned, distances.clamp(min=0))
    # (batch, heads, shared, chosen, tokens that share a choice, ...)
    scores = asking.unflatten(2, (shared, -1)).transpose(3, 4) @ k.mT
    shift = scores[..., -1:] - scores[..., :-1].logsumexp(dim=-1, keepdim=True)
    hidden = is_landmark(torch.arange(span, device=k.device), sizes.block_size) | (chosen < 0)[..., None, None]
    return (scores + shift).masked_fill(hidden, -torch.inf).transpose(3, 4).reshape(batch, heads, -1, blocks * span)


@without_autocast
def mix_retrieved(
    far: Float[Tensor, "batch heads tokens keys"],
    far_values: Float[Tensor, "batch heads shared chosen span value_dim"],
    near: Float[Tensor, "batch heads tokens local"],
    near_values: Float[Tensor, "batch kv_heads local value_dim"],
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """One softmax over the logits of chosen blocks and of what is local, and the weighted sum of their values."""
    weights = torch.cat((far, near), dim=-1).softmax(dim=-1)
    of_far, of_near = weights.split((far.shape[-1], near.shape[-1]), dim=-1)
    mixed = of_far.unflatten(2, (far_values.shape[2], -1)) @ far_values.flatten(3, 4).to(weights.dtype)
    return mixed.flatten(2, 3) + of_near @ repeat_heads(near_values, far.shape[1]).to(weights.dtype)
