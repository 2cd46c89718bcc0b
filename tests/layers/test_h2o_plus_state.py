"""H2O with full steps in between, restated with dictionaries that forget nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.layers.h2o_plus_state import empty_h2o_plus_state

DOUBLE = torch.float64
SIZES = {"num_kv_heads": 2, "head_dim": 8, "value_dim": 5, "like": torch.zeros(1, dtype=DOUBLE)}


class ByDictionaries:
    """One row of a batch: for each key head the scores of all tokens, and those that are kept."""

    def __init__(self, cache_size: int, stride: int) -> None:
        self.cache_size, self.stride = cache_size, stride
        self.seen = self.steps = 0
        self.scores: list[dict[int, float]] = [{}, {}]
        self.kept: list[set[int]] = [set(), set()]
        self.k, self.v = (torch.zeros(2, 0, width, dtype=DOUBLE) for width in (8, 5))

    def advance(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        prompt = q.shape[1] > 1 or self.seen == 0
        self.steps = 0 if prompt else self.steps + 1
        full = prompt or self.steps % self.stride == 0
        self.k, self.v = torch.cat((self.k, k), dim=1), torch.cat((self.v, v), dim=1)
        found = torch.zeros(4, q.shape[1], 5, dtype=DOUBLE)
        for g in range(2):
            for i in range(q.shape[1]):
                self.scores[g][self.seen + i] = 0.0
                there = sorted(self.scores[g] if full else self.kept[g] | {self.seen + i})
                for h in (2 * g, 2 * g + 1):
                    weights = (q[h, i] @ self.k[g, there].T * 8**-0.5).softmax(dim=-1)
                    found[h, i] = weights @ self.v[g, there]
                    for place, weight in zip(there, weights.tolist(), strict=True):
                        self.scores[g][place] += weight
            self.cut(g, set(there), self.seen + q.shape[1])
        self.seen += q.shape[1]
        return found

    def cut(self, g: int, there: set[int], seen: int) -> None:
        latest = {place for place in there if place >= seen - self.cache_size // 2}
        others = sorted(there - latest, key=lambda place: -self.scores[g][place])
        self.kept[g] = latest | set(others[: self.cache_size - len(latest)])


def streams(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, heads, tokens, width, dtype=DOUBLE) for heads, width in ((4, 8), (2, 8), (2, 5)))
    return q, k, v


@pytest.mark.parametrize("chunks", [[1] * 31, [2, 1, 9, 1, 1, 4, *[1] * 13]])
@pytest.mark.parametrize(
    ("cache_size", "stride", "max_len"), [(6, 4, None), (5, 1, 31), (1, 3, 31), (40, 5, 31), (6, 50, None)]
)
def test_decoding_is_the_definition(cache_size: int, stride: int, chunks: list[int], max_len: int | None) -> None:
    q, k, v = streams(31)
    state = empty_h2o_plus_state(2, cache_size=cache_size, **SIZES, max_len=max_len)
    rows = [ByDictionaries(cache_size, stride) for _ in range(2)]
    with torch.no_grad():
        for pieces in zip(*(x.split(chunks, dim=2) for x in (q, k, v)), strict=True):
            mixed, state = state.advance(*pieces, stride=stride)
            expected = torch.stack([row.advance(*(x[b] for x in pieces)) for b, row in enumerate(rows)])
            torch.testing.assert_close(mixed, expected)
            kept = [[[j for j in head if j >= 0] for head in row] for row in state.kept.carried().tolist()]
            assert kept == [[sorted(head) for head in row.kept] for row in rows]


def test_rows_of_other_lengths_are_decoded_as_if_alone() -> None:
    """Chunks of which each row has some tokens, beyond the first memory's room."""
    lengths = [13, 1, 1, 4, 1, 1, 1, 60, *[1] * 9]
    counts = torch.tensor([lengths, [0, 1, 1, 1, 0, 1, 1, 3, *[1] * 9]]).T
    q, k, v = streams(sum(lengths))
    state = empty_h2o_plus_state(2, cache_size=6, **SIZES, max_len=None)
    rows, start = [ByDictionaries(6, 3) for _ in range(2)], 0
    with torch.no_grad():
        for length, real in zip(lengths, counts.tolist(), strict=True):
            pieces = [x[:, :, start : start + length] for x in (q, k, v)]
            mask = torch.arange(length) < torch.tensor(real)[:, None]
            mixed, state = state.advance(*pieces, stride=3, mask=mask)
            for b, count in enumerate(real):
                if count:
                    expected = rows[b].advance(*(x[b, :, :count] for x in pieces))
                    torch.testing.assert_close(mixed[b, :, :count], expected)
            start += length
    assert state.position.tolist() == [row.seen for row in rows]


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="batch=2 and cache_size=0"):
        empty_h2o_plus_state(2, cache_size=0, **SIZES, max_len=None)
    with pytest.raises(ValueError, match="batch=2 and max_len=0"):
        empty_h2o_plus_state(2, cache_size=3, **SIZES, max_len=0)
