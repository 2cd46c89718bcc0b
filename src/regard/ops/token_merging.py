"""Token merging on maps: tokens that resemble one of a coarse grid of tokens are averaged into it, and copied back.

Paper: "Token Merging for Fast Stable Diffusion", Bolya and Hoffman, CVPR Workshops 2023,
https://arxiv.org/abs/2303.17604, section 3 (the matching is that of "Token Merging: Your ViT But Faster", Bolya et al.,
ICLR 2023, https://arxiv.org/abs/2210.09461, section 3.2).
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agentsd/merge.py:bipartite_soft_matching_random2d`. There one call
fixes both numbers of tokens to merge, and gives another number of results when nothing is merged; here the numbers are
arguments of `merge` and `unmerge`, and 0 means that nothing is merged. Ties between equally similar tokens go to the
first one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast

Size = tuple[int, int]
Tokens = Float[Tensor, "batch tokens channels"]

_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class Matching:
    """Sources in the order in which they merge, and the destination of each.

    Args:
        sources: row-major places of the tokens that may be merged, by falling similarity to their destination.
        nearest: the number of each source's destination, in the same order.
        destinations: row-major places of the tokens that take others up.
    """

    sources: Int[Tensor, "batch sources"]
    nearest: Int[Tensor, "batch sources"]
    destinations: Int[Tensor, " destinations"]

    @property
    def tokens(self) -> int:
        """Number of tokens before merging."""
        return self.sources.shape[1] + self.destinations.shape[0]

    def merged_count(self, count: int) -> int:
        """How many of `count` sources can be merged: all of them at most.

        Raises:
            ValueError: a negative number.
        """
        if count < 0:
            raise ValueError(f"the number of tokens to merge must not be negative, got {count}")
        return min(count, self.sources.shape[1])

    def merge(self, x: Tokens, count: int) -> Float[Tensor, "batch fewer channels"]:
        """The tokens that stay, by falling similarity, then the destinations, each the mean of itself and its sources.

        Args:
            x: tokens of the matched map.
            count: how many sources to merge; more than there are means all.
        """
        count = self.merged_count(count)
        batch, _, channels = x.shape
        dtype, number = compute_dtype(x), self.destinations.shape[0]
        kept = _rows(x, self.sources[:, count:])
        moved = _rows(x, self.sources[:, :count])
        target = _flat(self.nearest[:, :count], number)
        sums = x[:, self.destinations].to(dtype).reshape(batch * number, channels)
        sums = sums.index_add(0, target, moved.to(dtype).reshape(-1, channels))
        sizes = torch.ones(batch * number, dtype=dtype, device=x.device)
        sizes = sizes.index_add(0, target, sizes.new_ones(target.shape))
        means = (sums / sizes[:, None]).to(x.dtype).view(batch, number, channels)
        return torch.cat((kept, means), dim=1)

    def unmerge(self, y: Float[Tensor, "batch fewer channels"], count: int) -> Tokens:
        """All tokens again: merged sources get what their destination has.

        Args:
            y: tokens in the order that `merge` gives.
            count: how many sources were merged.

        Raises:
            ValueError: another number of tokens than `merge` leaves.
        """
        count = self.merged_count(count)
        kept = self.sources.shape[1] - count
        if y.shape[1] != self.tokens - count:
            raise ValueError(f"y has {y.shape[1]} tokens, after merging {count} of {self.tokens} it must have the rest")
        batch = y.shape[0]
        rows = self.sources.new_empty(batch, self.tokens)
        places = torch.arange(self.tokens - count, device=y.device)
        rows.scatter_(1, self.sources[:, count:], places[:kept].expand(batch, kept))
        rows.scatter_(1, self.sources[:, :count], self.nearest[:, :count] + kept)
        rows.scatter_(1, self.destinations.expand(batch, -1), places[kept:].expand(batch, -1))
        return _rows(y, rows)


@without_autocast
def match_tokens(
    x: Tokens, space: Size, cell: Size, *, random: bool = False, generator: torch.Generator | None = None
) -> Matching:
    """Match every token with the most similar (by cosine) of one token per cell of the map.

    Tokens at the bottom and at the right that fill no cell are sources.

    Args:
        x: tokens of a map, row-major.
        space: rows and columns of the map.
        cell: rows and columns of a cell.
        random: take a random token of every cell, the same for all of the batch, instead of the top left one.
        generator: where the random numbers come from, on the device of `x`.

    Raises:
        ValueError: a map that has another number of tokens, or is smaller than a cell.
    """
    height, width = space
    if height * width != x.shape[1]:
        raise ValueError(f"x has {x.shape[1]} tokens and the map {height} x {width}: they must be equal in number")
    if min(cell) < 1 or cell[0] > height or cell[1] > width:
        raise ValueError(f"cells of {cell[0]} x {cell[1]} tokens must be positive and fit the map, {height} x {width}")
    with torch.no_grad():
        destinations = _destinations(space, cell, random=random, generator=generator, device=x.device)
        is_source = torch.ones(x.shape[1], dtype=torch.uint8, device=x.device)
        is_source[destinations] = 0
        sources = is_source.argsort(stable=True)[destinations.shape[0] :]
        unit = x.to(compute_dtype(x))
        unit = unit / unit.norm(dim=-1, keepdim=True).clamp_min(_SMALLEST_NORM)
        best, nearest = (unit[:, sources] @ unit[:, destinations].transpose(1, 2)).max(dim=-1)
        order = best.argsort(dim=-1, descending=True, stable=True)
    return Matching(sources[order], nearest.gather(1, order), destinations)


def _destinations(
    space: Size, cell: Size, *, random: bool, generator: torch.Generator | None, device: torch.device
) -> Int[Tensor, " destinations"]:
    """Places of the chosen token of every cell, in ascending order."""
    (height, width), (sy, sx) = space, cell
    rows, columns = height // sy, width // sx
    within = torch.zeros(rows, columns, dtype=torch.int64, device=device)
    if random:
        within = torch.randint(sy * sx, (rows, columns), device=device, generator=generator)
    top = torch.arange(rows, device=device)[:, None] * sy
    left = torch.arange(columns, device=device) * sx
    places = (top + within // sx) * width + left + within % sx
    return places.flatten().sort().values


def _flat(numbers: Int[Tensor, "batch some"], per_row: int) -> Int[Tensor, " all"]:
    """Numbers within rows of `per_row` as numbers over all rows."""
    offsets = torch.arange(numbers.shape[0], device=numbers.device)[:, None] * per_row
    return (numbers + offsets).flatten()


def _rows(x: Tokens, numbers: Int[Tensor, "batch some"]) -> Float[Tensor, "batch some channels"]:
    """Tokens by number, another choice in every row of the batch."""
    taken = x.reshape(-1, x.shape[-1]).index_select(0, _flat(numbers, x.shape[1]))
    return taken.view(*numbers.shape, x.shape[-1])
