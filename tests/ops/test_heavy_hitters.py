"""What H2O keeps: accumulated weights restated with loops, and the choice of the latest and the heaviest keys."""

from __future__ import annotations

import pytest
import torch

from regard.ops import heavy_hitters
from regard.ops.heavy_hitters import attend_and_score, heavy_or_recent

DOUBLE = torch.float64


@pytest.mark.parametrize("rows", [128, 4])
@pytest.mark.parametrize("with_past", [False, True])
def test_every_key_gets_the_weights_of_all_queries_that_saw_it(
    monkeypatch: pytest.MonkeyPatch, with_past: bool, rows: int
) -> None:
    monkeypatch.setattr(heavy_hitters, "ROWS_AT_ONCE", rows)
    past = 7 if with_past else 0
    q = torch.randn(2, 6, 11, 8, dtype=DOUBLE)
    k, v = (torch.randn(2, 3, past + 11, width, dtype=DOUBLE) for width in (8, 5))
    held = torch.rand(2, 3, 7) < 0.6 if with_past else None
    real = torch.arange(11) < torch.tensor([[11], [6]])
    mixed, scores = attend_and_score(q, k, v, past=held, real=real)
    expected = torch.zeros(2, 3, past + 11, dtype=DOUBLE)
    for b in range(2):
        for h in range(6):
            for i in range(int(real[b].sum())):
                seen = [j for j in range(past) if held is not None and held[b, h // 2, j]] + list(
                    range(past, past + i + 1)
                )
                weights = (q[b, h, i] @ k[b, h // 2, seen].T * 8**-0.5).softmax(dim=-1)
                expected[b, h // 2, seen] += weights
                torch.testing.assert_close(mixed[b, h, i], weights @ v[b, h // 2, seen])
    torch.testing.assert_close(scores, expected)
    assert bool(mixed.isfinite().all())


def test_scores_carry_no_gradient() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    mixed, scores = attend_and_score(q, k, v)
    assert mixed.requires_grad
    assert not scores.requires_grad


def test_the_latest_stay_and_the_heaviest_of_the_others() -> None:
    scores = torch.tensor([[[9.0, 1.0, 5.0, 7.0, 0.0, 0.5, 3.0]]])
    places = torch.tensor([[[0, 1, 3, 4, 8, 9, -1]]])
    position = torch.tensor([10])

    def kept(cache_size: int) -> list[int]:
        return sorted(heavy_or_recent(scores, places, position, cache_size).flatten().tolist())

    assert kept(5) == [0, 2, 3, 4, 5]
    assert kept(4) == [0, 3, 4, 5]
    assert kept(3) == [0, 3, 5]
    assert kept(1) == [0]
    assert kept(6) == [0, 1, 2, 3, 4, 5]
    assert kept(7) == [-1, 0, 1, 2, 3, 4, 5]
