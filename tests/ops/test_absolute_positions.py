"""Positions of tokens and their sinusoids, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from regard.ops.absolute_positions import sinusoids, token_positions

TOKENS = torch.zeros(2, 6, dtype=torch.int64)
REAL = torch.tensor([[False, True, True, False, True, True], [True, True, True, True, True, False]])


def test_positions_count_real_tokens() -> None:
    assert token_positions(TOKENS).tolist() == [list(range(6))] * 2
    counted = token_positions(TOKENS, mask=REAL)
    assert counted[0, REAL[0]].tolist() == [0, 1, 2, 3]
    assert counted[1, REAL[1]].tolist() == [0, 1, 2, 3, 4]
    later = token_positions(TOKENS, mask=REAL, start=torch.tensor([10, 3]))
    assert later[0, REAL[0]].tolist() == [10, 11, 12, 13]
    assert later[1, REAL[1]].tolist() == [3, 4, 5, 6, 7]


def test_positions_start_anew_where_a_run_starts() -> None:
    segments = torch.tensor([[4, 4, 7, 9, 7, 7], [0, 1, 1, 1, 0, 0]])
    assert token_positions(TOKENS, segments=segments).tolist() == [[0, 1, 0, 0, 0, 1], [0, 0, 1, 2, 0, 1]]
    # without the masked 9 the 7s are one run
    counted = token_positions(TOKENS, mask=REAL, segments=segments)
    assert counted[0, REAL[0]].tolist() == [0, 0, 1, 2]
    assert counted[1, REAL[1]].tolist() == [0, 0, 1, 2, 0]


@pytest.mark.parametrize("dim", [1, 6, 7])
def test_sinusoids_are_the_formula(dim: int) -> None:
    made, half = sinusoids(torch.tensor([[0, 3, 250]]), dim), math.ceil(dim / 2)
    for row, position in enumerate((0, 3, 250)):
        angles = [position * 10000 ** (-channel / half) for channel in range(half)]
        expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        assert made[0, row].tolist() == pytest.approx(expected[:dim], abs=1e-4)


def test_ill_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"mask has shape \(2, 5\), it must be \(2, 6\)"):
        token_positions(TOKENS, mask=REAL[:, :5])
    with pytest.raises(ValueError, match=r"segments has shape \(1, 6\), it must be \(2, 6\)"):
        token_positions(TOKENS, segments=TOKENS[:1])
    with pytest.raises(ValueError, match="dim must be positive, got 0"):
        sinusoids(TOKENS, 0)
