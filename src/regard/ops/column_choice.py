"""Which keys an estimate of attention keeps: K columns stand for the visible keys, the best columns are chosen.

Column m of a query's row stands for the m-th K-th of the L keys that the query sees: key j (counted from 0 among the
visible ones) belongs to column floor((j + 1/2) K / L - 1e-4). Columns are chosen by the size of their estimate under a
budget that several heads or rows share ("pooling"), so that on average `kept` keys per query and head remain.

Paper: "SEA: Sparse Linear Attention with Estimated Attention Mask", Lee et al., ICLR 2024,
https://arxiv.org/abs/2310.01777, sections 3.1 and 3.2. Compared with gmlwns2000/sea-attention@5609413b
`src/models/perlin_attention/attention.py` and `ops/kernels/resize_m_to_t.py`.
Different from the code: columns are computed in integers, so that the column of a key and the keys of a column agree
at every length, and of equal estimates the first counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Pooling = Literal["causal_batch", "query", "head", "batch"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
Lengths = Int[Tensor, "#batch queries"]

_SHIFT = 10_000
"""1 / 1e-4: how far the borders of columns are moved, as in the compared code."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How many columns are chosen, and out of which.

    Args:
        heads: number of heads.
        columns: K, the width of the estimate.
        kept: k, keys that are kept per query and head on average.
        pooling: what shares a budget: "causal_batch" = all heads of a query, "query" = nothing, "head" = all queries
            of a head, "batch" = all queries of all heads.
        oversample: the budget's factor; the keys of the chosen columns are then thinned out to `kept` again.

    Raises:
        ValueError: a number that is too small, or an unknown pooling.
    """

    heads: int
    columns: int
    kept: int
    pooling: Pooling = "causal_batch"
    oversample: float = 1.0

    def __post_init__(self) -> None:
        if self.heads < 1 or self.columns < 1:
            raise ValueError(f"heads and columns must be positive, got heads={self.heads} and columns={self.columns}")
        if self.kept < 1:
            raise ValueError(f"at least 1 key must be kept per query and head, got {self.kept}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"the pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if self.oversample < 1:
            raise ValueError(f"oversample must be at least 1, got {self.oversample}")

    @property
    def bounded_rows(self) -> bool:
        """Whether the budget limits what a single query keeps."""
        return self.pooling in ("causal_batch", "query")

    @property
    def shared_heads(self) -> int:
        """Heads that share a budget."""
        return self.heads if self.pooling in ("causal_batch", "batch") else 1

    def most_columns(self, length: int) -> int:
        """The budget of a query that sees `length` keys, of all the heads that share it."""
        budget = round(self.kept * self.oversample * self.columns / length * self.shared_heads)
        return min(max(budget, 1), self.shared_heads * self.columns)

    def most_keys(self, shortest: int, longest: int, *, spare: int = 0) -> int:
        """No query that sees `shortest` to `longest` keys keeps more, over all heads.

        Args:
            shortest: fewest visible keys.
            longest: most visible keys.
            spare: keys that a column may have beyond its own (and two columns at once).
        """
        most, low = 1, max(shortest, 1)
        while low <= longest:
            high = min(longest, 2 * low - 1)
            columns = self.most_columns(low) * (self.heads // self.shared_heads)
            # the first column also takes what the shift pushes below 0
            width = -(-high * (_SHIFT + 1) // (_SHIFT * self.columns)) + spare
            found = columns * width
            most = max(most, found if spare else min(found, self.heads * high))
            low = high + 1
        return most


def column_starts(lengths: Lengths, columns: int) -> Int[Tensor, "#batch queries borders"]:
    """The first key of each column, and, last, the number of visible keys: `columns + 1` borders."""
    column = torch.arange(columns + 1, device=lengths.device)
    seen = lengths[..., None]
    # the smallest j with (2 j + 1) SHIFT K >= (2 SHIFT m + 2) L, which is the module's formula
    wanted = (_SHIFT * column + 1) * 2 * seen - _SHIFT * columns
    first = -torch.div(-wanted, 2 * _SHIFT * columns, rounding_mode="floor")
    inner = torch.minimum(first.clamp(min=0), seen)
    return torch.where(column == 0, 0, torch.where(column == columns, seen, inner))


def columns_of_keys(
    lengths: Lengths, keys: int, columns: int, *, jitter: Float[Tensor, " keys"] | None = None
) -> Int[Tensor, "#batch queries keys"]:
    """The column of each key; `columns` for keys that the query does not see.

    Args:
        lengths: visible keys of each query, the first ones of all.
        keys: number of keys.
        columns: K.
        jitter: added to the positions of the keys, then cut to the visible ones (while training).
    """
    key, seen = torch.arange(keys, device=lengths.device), lengths[..., None]
    return torch.where(key < seen, _column_of(key, seen, columns, jitter), columns)


def _column_of(key: Tensor, seen: Tensor, columns: int, jitter: Tensor | None) -> Tensor:
    seen = seen.clamp(min=1)
    if jitter is None:
        place = (2 * key + 1) * _SHIFT * columns - 2 * seen
        return torch.div(place, 2 * _SHIFT * seen, rounding_mode="floor").clamp(min=0)
    moved = torch.minimum((key + jitter).clamp(min=0), seen - 1)
    return ((moved + 0.5) / seen * columns - 1 / _SHIFT).floor().long().clamp(0, columns - 1)


def thinned_keys(choice: Choice, key: Int[Tensor, "*place"], seen: Int[Tensor, "*place"]) -> Bool[Tensor, "*place"]:
    """Which keys stay where more columns are chosen than `kept` allows: about one in `oversample`, evenly spread."""
    share = ((seen / choice.oversample).round().clamp(min=1)) / seen.clamp(min=1)
    kept, most = float(round(choice.kept)), float(round(choice.kept * choice.oversample))
    factor = seen.clamp(min=kept, max=most) / choice.kept
    place = (key + 1) * share
    return (place - place.round()).abs() <= 0.5 / factor + 1e-4


def resize_to_keys(
    x: Shaped[Tensor, "batch heads queries columns"],
    lengths: Lengths,
    keys: int,
    *,
    fill: float,
    jitter: Float[Tensor, " keys"] | None = None,
) -> Shaped[Tensor, "batch heads queries keys"]:
    """Every key gets what its column holds, and `fill` where the query does not see it.

    Args:
        x: the estimate, or what was made of it.
        lengths: visible keys of each query.
        keys: number of keys.
        fill: for keys that are not visible.
        jitter: as for `columns_of_keys`.
    """
    column = columns_of_keys(lengths, keys, x.shape[-1], jitter=jitter)
    padded = torch.nn.functional.pad(x, (0, 1), value=fill)
    return padded.gather(3, column[:, None].expand(x.shape[0], x.shape[1], -1, -1))


# --------------------------------------------------------------------------------------------------- choosing


def budgets(choice: Choice, lengths: Lengths) -> Int[Tensor, "*group"]:
    """Columns that each group of `pooled` estimates keeps."""
    amount = choice.kept * choice.oversample * choice.columns
    if choice.bounded_rows:
        many = amount / lengths.clamp(min=1).double() * choice.shared_heads
        many = many if choice.pooling == "causal_batch" else many[:, None]
    else:
        of_all = lengths.new_full((1,), amount * choice.shared_heads, dtype=torch.float64)
        many = of_all if choice.pooling == "batch" else of_all[:, None]
    return many.round().clamp(min=1).long()


def choose_columns(
    estimate: Float[Tensor, "batch heads queries columns"],
    lengths: Lengths,
    choice: Choice,
    *,
    shortest: int | None = None,
    real: Bool[Tensor, "batch queries"] | None = None,
) -> Bool[Tensor, "batch heads queries columns"]:
    """The largest estimates of each group; of equal ones the first.

    Args:
        estimate: not negative.
        lengths: visible keys of each query.
        choice: the budget.
        shortest: no query sees fewer keys; None = 1.
        real: which queries are real; the others keep nothing.
    """
    values, budget, most = _grouped(estimate, lengths, choice, shortest, real)
    limit = values.topk(most, dim=-1).values.gather(-1, (budget - 1).expand(*values.shape[:-1], 1))
    above, equal = values > limit, values == limit
    room = budget - above.sum(dim=-1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=-1) <= room))
    return _ungrouped(chosen, estimate, choice, real)


def choose_columns_reference(
    estimate: Float[Tensor, "batch heads queries columns"],
    lengths: Lengths,
    choice: Choice,
    *,
    real: Bool[Tensor, "batch queries"] | None = None,
) -> Bool[Tensor, "batch heads queries columns"]:
    """The same by sorting every group; arguments as for `choose_columns`."""
    values, budget, _ = _grouped(estimate, lengths, choice, None, real)
    rank = values.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return _ungrouped(rank < budget, estimate, choice, real)


def _grouped(
    estimate: Tensor, lengths: Tensor, choice: Choice, shortest: int | None, real: Tensor | None
) -> tuple[Tensor, Tensor, int]:
    """Estimates as `(*group, members)`, their budgets `(*group, 1)`, and no budget is larger than the number given."""
    if real is not None:
        estimate = torch.where(real[:, None, :, None], estimate, 0)
    if choice.pooling == "causal_batch":
        values = estimate.transpose(1, 2).flatten(2)
    elif choice.pooling == "query":
        values = estimate
    else:
        values = estimate.flatten(1 if choice.pooling == "batch" else 2)
    members = values.shape[-1]
    most = members
    if choice.bounded_rows:
        most = min(members, choice.most_columns(shortest or 1))
    return values, budgets(choice, lengths)[..., None].clamp(max=most), most


def _ungrouped(chosen: Tensor, estimate: Tensor, choice: Choice, real: Tensor | None) -> Tensor:
    batch, heads, queries, columns = estimate.shape
    if choice.pooling == "causal_batch":
        chosen = chosen.view(batch, queries, heads, columns).transpose(1, 2)
    chosen = chosen.reshape(estimate.shape)
    return chosen if real is None else chosen & real[:, None, :, None]
