"""H2O's cache, restated with dictionaries: who stays, who goes, rows of other lengths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.layers.h2o_state import H2OState, empty_h2o_state

DOUBLE = torch.float64
SIZES = {"num_kv_heads": 2, "head_dim": 8, "value_dim": 5, "like": torch.zeros(1, dtype=DOUBLE)}


def streams(tokens: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(batch, heads, tokens, width, dtype=DOUBLE) for heads, width in ((4, 8), (2, 8), (2, 5)))
    return q, k, v


def empty(cache_size: int, batch: int = 2) -> H2OState:
    return empty_h2o_state(batch, cache_size=cache_size, **SIZES)


class ByDictionaries:
    """One row of a batch: for each key head the scores of the tokens that are still there."""

    def __init__(self, cache_size: int) -> None:
        self.cache_size, self.seen = cache_size, 0
        self.scores: list[dict[int, float]] = [{}, {}]
        self.k, self.v = (torch.zeros(2, 0, width, dtype=DOUBLE) for width in (8, 5))

    def advance(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.k, self.v = torch.cat((self.k, k), dim=1), torch.cat((self.v, v), dim=1)
        found = torch.zeros(4, q.shape[1], 5, dtype=DOUBLE)
        for i in range(q.shape[1]):
            for g in range(2):
                self.scores[g][self.seen + i] = 0.0
                there = sorted(self.scores[g])
                for h in (2 * g, 2 * g + 1):
                    weights = (q[h, i] @ self.k[g, there].T * 8**-0.5).softmax(dim=-1)
                    found[h, i] = weights @ self.v[g, there]
                    for place, weight in zip(there, weights.tolist(), strict=True):
                        self.scores[g][place] += weight
        self.seen += q.shape[1]
        for g in range(2):
            self.cut(self.scores[g])
        return found

    def cut(self, scores: dict[int, float]) -> None:
        latest = {place for place in scores if place >= self.seen - self.cache_size // 2}
        others = sorted(set(scores) - latest, key=lambda place: scores[place])
        for place in others[: max(0, len(scores) - self.cache_size)]:
            del scores[place]

    def kept(self) -> list[list[int]]:
        return [sorted(scores) + [-1] * (self.cache_size - len(scores)) for scores in self.scores]


@pytest.mark.parametrize("chunks", [[1] * 31, [13] + [1] * 18, [2, 1, 9, 1, 1, 4, 13]])
@pytest.mark.parametrize("cache_size", [6, 5, 1, 2, 40])
def test_decoding_is_the_definition(cache_size: int, chunks: list[int]) -> None:
    q, k, v = streams(31)
    state, rows = empty(cache_size), [ByDictionaries(cache_size) for _ in range(2)]
    size = state.nbytes
    with torch.no_grad():
        for pieces in zip(*(x.split(chunks, dim=2) for x in (q, k, v)), strict=True):
            mixed, state = state.advance(*pieces)
            expected = torch.stack([row.advance(*(x[b] for x in pieces)) for b, row in enumerate(rows)])
            torch.testing.assert_close(mixed, expected)
            assert state.carried().tolist() == [row.kept() for row in rows]
            assert state.nbytes == size
    assert state.keys_read().tolist() == [min(31, cache_size + 1)] * 2


def test_rows_of_other_lengths_are_decoded_as_if_alone() -> None:
    counts = torch.tensor([[13, 1, 0, 5, 1, 4, 1, 1, 1], [0, 1, 1, 0, 1, 1, 0, 1, 1]]).T
    q, k, v = streams(40)
    state, rows, start = empty(6), [ByDictionaries(6) for _ in range(2)], 0
    with torch.no_grad():
        for real in counts.tolist():
            length = max(1, *real)
            pieces = [x[:, :, start : start + length] for x in (q, k, v)]
            mixed, state = state.advance(*pieces, mask=torch.arange(length) < torch.tensor(real)[:, None])
            for b, count in enumerate(real):
                if count:
                    expected = rows[b].advance(*(x[b, :, :count] for x in pieces))
                    torch.testing.assert_close(mixed[b, :, :count], expected)
            assert state.carried().tolist() == [row.kept() for row in rows]
            start += length
    assert state.position.tolist() == [row.seen for row in rows]


def test_gradients_flow_through_the_attention() -> None:
    leaves = [x.requires_grad_() for x in streams(17)]
    state, rows = empty(6), [ByDictionaries(6) for _ in range(2)]
    ours, expected = [], []
    for pieces in zip(*(x.split([9] + [1] * 8, dim=2) for x in leaves), strict=True):
        mixed, state = state.advance(*pieces)
        ours.append(mixed)
    # the same values: gradients by central differences along one direction
    loss = torch.cat(ours, dim=2).square().sum()
    found = torch.autograd.grad(loss, leaves)
    ways = [torch.randn_like(x) for x in leaves]
    with torch.no_grad():
        for sign in (1, -1):
            moved = [x + sign * 1e-6 * way for x, way in zip(leaves, ways, strict=True)]
            parts = zip(*(x.split([9] + [1] * 8, dim=2) for x in moved), strict=True)
            rows = [ByDictionaries(6) for _ in range(2)]
            mixed = [torch.stack([row.advance(*(x[b] for x in p)) for b, row in enumerate(rows)]) for p in parts]
            expected.append(float(torch.cat(mixed, dim=2).square().sum()))
    slope = float(sum((gradient * way).sum() for gradient, way in zip(found, ways, strict=True)))
    assert slope == pytest.approx((expected[0] - expected[1]) / 2e-6, rel=1e-5)


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="batch=0 and cache_size=3"):
        empty(3, batch=0)
    with pytest.raises(ValueError, match="batch=2 and cache_size=0"):
        empty(0)
