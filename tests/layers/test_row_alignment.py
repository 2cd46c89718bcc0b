"""Tokens of rows at different phases, laid out so that chunks begin at the same places."""

from __future__ import annotations

import torch

from regard.layers.row_alignment import align_rows, take_along


def test_every_row_begins_at_its_phase_and_comes_back() -> None:
    phase, counts = torch.tensor([0, 3, 4]), torch.tensor([6, 0, 5])
    aligned = align_rows(phase, counts, tokens=6, chunk_size=5)
    x = torch.randn(3, 2, 6, 4)
    placed = aligned.place(x, dim=2)
    assert placed.shape == (3, 2, 10, 4)
    for row in range(3):
        first, count = int(phase[row]), int(counts[row])
        torch.testing.assert_close(placed[row, :, first : first + count], x[row, :, :count])
        assert aligned.real[row].nonzero().flatten().tolist() == list(range(first, first + count))
    assert aligned.filled.tolist() == [6, 3, 9]
    torch.testing.assert_close(aligned.back(placed, dim=2)[0], x[0])
    torch.testing.assert_close(aligned.back(placed, dim=2)[2, :, :5], x[2, :, :5])


def test_taking_may_lengthen_an_axis() -> None:
    x, index = torch.randn(2, 3, 5), torch.tensor([[2, 0, 0, 1], [1, 1, 2, 0]])
    got = take_along(x, index, dim=1)
    for row in range(2):
        torch.testing.assert_close(got[row], x[row, index[row]])
