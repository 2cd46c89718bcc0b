"""Softmax attention over the keys that an estimate keeps: as a masked square, and gathered in linear time.

Each query attends to the keys of the columns that `regard.ops.column_choice` picks from its estimate, and to nothing
else; a head that keeps no key gives 0. The gathered form walks over the queries in chunks. It lists the kept keys of
all heads of a query one after the other (their number is bounded by the budget, whatever the number of keys), gathers
them once, and lets every head of the query see its own stretch of the list: three matrix products a chunk, in memory
that does not grow with the number of keys.

Paper: "SEA: Sparse Linear Attention with Estimated Attention Mask", Lee et al., ICLR 2024,
https://arxiv.org/abs/2310.01777, section 3.2. Compared with gmlwns2000/sea-attention@5609413b
`src/models/perlin_attention/attention.py` (its dense path; the sparse kernels there need a GPU).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.ops.column_choice import (
    Choice,
    Lengths,
    choose_columns,
    choose_columns_reference,
    column_starts,
    columns_of_keys,
    resize_to_keys,
    thinned_keys,
)
from regard.ops.heads import repeat_heads
from regard.ops.precision import compute_dtype, without_autocast

Form = Literal["auto", "square", "gathered"]
FORMS: tuple[Form, ...] = get_args(Form)

CHUNK = 64
"""Queries that are gathered at once."""
JITTER_REACH = 1
"""Keys by which jitter may move another key's position over a column's border, on each side."""


@without_autocast
def kept_keys(
    estimate: Float[Tensor, "batch heads queries columns"],
    lengths: Lengths,
    keys: int,
    choice: Choice,
    *,
    real: Bool[Tensor, "batch queries"] | None = None,
    jitter: Float[Tensor, " keys"] | None = None,
) -> Bool[Tensor, "batch heads queries keys"]:
    """The map of kept keys, by sorting.

    Args:
        estimate: not negative, K columns wide.
        lengths: visible keys of each query, the first ones of all.
        keys: number of keys.
        choice: the budget.
        real: which queries are real; the others keep nothing.
        jitter: moves the keys' positions while training.
    """
    chosen = choose_columns_reference(estimate, lengths, choice, real=real)
    kept = resize_to_keys(chosen.to(torch.uint8), lengths, keys, fill=0, jitter=jitter).bool()
    if choice.oversample > 1:
        seen, key = lengths[:, None, :, None], torch.arange(keys, device=lengths.device)
        kept = kept & thinned_keys(choice, key, seen)
    return kept


@without_autocast
def kept_attention_weights(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    kept: Bool[Tensor, "batch heads queries keys"],
    *,
    scale: float,
) -> Float[Tensor, "batch heads queries keys"]:
    """softmax(scale q k^T) over the kept keys, in at least float32; a row that keeps none is 0."""
    dtype = compute_dtype(q)
    scores = torch.einsum("bhid,bhjd->bhij", q.to(dtype) * scale, repeat_heads(k, q.shape[1]).to(dtype))
    return _softmax_over(scores, kept)


@without_autocast
def kept_attention_reference(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    kept: Bool[Tensor, "batch heads queries keys"],
    *,
    scale: float,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """The equation as written: the weights of the whole square, times the values."""
    weights = kept_attention_weights(q, k, kept, scale=scale)
    return weights @ repeat_heads(v, q.shape[1]).to(weights.dtype)


@without_autocast
def gathered_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    estimate: Float[Tensor, "batch heads queries columns"],
    lengths: Lengths,
    choice: Choice,
    *,
    scale: float,
    spans: tuple[tuple[int, int], ...],
    real: Bool[Tensor, "batch queries"] | None = None,
    jitter: Float[Tensor, " keys"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Attention over the kept keys alone, in at least float32; equals `kept_attention_reference`.

    With gradients, gathered keys are gathered again in the backward pass instead of being held.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries'.
        v: values.
        estimate: not negative, K columns wide.
        lengths: visible keys of each query, the first ones of all.
        choice: the budget; pooled over the heads of a query or not at all.
        scale: factor of the scores.
        spans: the fewest and the most keys that the queries of each chunk see, from `chunk_spans`.
        real: which queries are real; the others keep nothing.
        jitter: moves the keys' positions while training.

    Raises:
        ValueError: a pooling over queries, which bounds no single query's keys.
    """
    if not choice.bounded_rows:
        raise ValueError(f"the gathered form needs a budget per query, got the pooling {choice.pooling!r}")
    dtype = compute_dtype(q)
    again = torch.is_grad_enabled() and q.requires_grad and not torch.compiler.is_compiling()
    mixed = []
    for number, span in enumerate(spans):
        rows = slice(number * CHUNK, (number + 1) * CHUNK)
        index, own = _listed_keys(
            estimate[:, :, rows].detach(),
            lengths[:, rows],
            choice,
            span=span,
            real=None if real is None else real[:, rows],
            jitter=jitter,
            kv_heads=k.shape[1],
            capacity=k.shape[2],
        )
        queries = q[:, :, rows].transpose(1, 2).to(dtype) * scale
        given = (queries, k, v, index, own)
        mixed.append(checkpoint(_attend_to_listed, *given, use_reentrant=False) if again else _attend_to_listed(*given))
    return torch.cat(mixed, dim=1).transpose(1, 2)


def chunk_spans(queries: int, shortest: int, longest: int, *, causal: bool) -> tuple[tuple[int, int], ...]:
    """For each chunk of `gathered_attention` the fewest and the most keys that its queries see.

    Args:
        queries: number of queries.
        shortest: keys that the first query sees at least (without `causal`: any query).
        longest: keys that the last query sees at most (without `causal`: any query).
        causal: whether each query sees one key more than the one before.
    """
    spans = []
    for start in range(0, queries, CHUNK):
        stop = min(start + CHUNK, queries)
        spans.append((shortest + start, longest - queries + stop) if causal else (shortest, longest))
    return tuple(spans)


def gathered_macs(
    choice: Choice, spans: tuple[tuple[int, int], ...], *, queries: int, head_dim: int, value_dim: int
) -> int:
    """Contraction MACs of `gathered_attention` for one row of the batch."""
    macs = 0
    for number, (low, high) in enumerate(spans):
        rows = min(CHUNK, queries - number * CHUNK)
        macs += rows * choice.most_keys(low, high) * choice.heads * (head_dim + value_dim)
    return macs


# --------------------------------------------------------------------------------------------------- inside


def _softmax_over(scores: Tensor, kept: Tensor) -> Tensor:
    hidden = scores.masked_fill(~kept, torch.finfo(scores.dtype).min)
    return torch.where(kept, hidden.softmax(dim=-1), 0)


def _listed_keys(
    estimate: Float[Tensor, "batch heads rows columns"],
    lengths: Int[Tensor, "#batch rows"],
    choice: Choice,
    *,
    span: tuple[int, int],
    real: Bool[Tensor, "batch rows"] | None,
    jitter: Float[Tensor, " keys"] | None,
    kv_heads: int,
    capacity: int,
) -> tuple[Int[Tensor, "batch rows listed"], Bool[Tensor, "batch rows heads listed"]]:
    """The kept keys of each query, as places in `(batch * kv_heads * capacity)`, and which head each belongs to."""
    batch, heads, rows, columns = estimate.shape
    chosen = choose_columns(estimate, lengths, choice, shortest=span[0], real=real)
    starts = column_starts(lengths, columns)
    first, last = starts[..., :-1], starts[..., 1:]
    reach = 0 if jitter is None else JITTER_REACH
    if reach:
        first, last = (first - reach).clamp(min=0), torch.minimum(last + reach, lengths[..., None])
    counts = ((last - first)[:, :, None] * chosen.transpose(1, 2)).flatten(2)
    ends = counts.cumsum(dim=-1)
    listed = choice.most_keys(*span, spare=2 * reach)
    place = torch.arange(listed, device=ends.device).expand(batch, rows, listed).contiguous()
    found = torch.searchsorted(ends, place, right=True)
    valid = found < heads * columns
    column = found.clamp(max=heads * columns - 1)
    offsets = (first[:, :, None] + counts.new_zeros(batch, 1, heads, 1)).flatten(2) - (ends - counts)
    key = torch.where(valid, place + offsets.gather(2, column), 0)
    head = torch.div(column, columns, rounding_mode="floor")
    if jitter is not None:
        valid = valid & (_moved_columns(key, lengths, columns, jitter) == column % columns)
    if choice.oversample > 1:
        valid = valid & thinned_keys(choice, key, lengths[..., None])
    row = torch.arange(batch, device=ends.device)[:, None, None]
    kv_head = torch.div(head, heads // kv_heads, rounding_mode="floor")
    own = (head[:, :, None] == torch.arange(heads, device=ends.device)[:, None]) & valid[:, :, None]
    return (row * kv_heads + kv_head) * capacity + key, own


def _moved_columns(key: Tensor, lengths: Tensor, columns: int, jitter: Tensor) -> Tensor:
    """The column of each listed key under jitter."""
    of_all = columns_of_keys(lengths, jitter.shape[0], columns, jitter=jitter)
    return of_all.expand(key.shape[0], -1, -1).gather(2, key)


def _attend_to_listed(
    queries: Float[Tensor, "batch rows heads head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    index: Int[Tensor, "batch rows listed"],
    own: Bool[Tensor, "batch rows heads listed"],
) -> Float[Tensor, "batch rows heads value_dim"]:
    keys, values = (_take(x, index).to(queries.dtype) for x in (k, v))
    return _softmax_over(queries @ keys.transpose(2, 3), own) @ values


def _take(x: Float[Tensor, "batch kv_heads keys width"], index: Int[Tensor, "batch rows listed"]) -> Tensor:
    flat = x.reshape(-1, x.shape[-1]).index_select(0, index.flatten())
    return flat.view(*index.shape, x.shape[-1])
