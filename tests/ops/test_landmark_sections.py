"""Which tokens are a query's own block and which lie in earlier ones, restated with loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.ops.landmark_sections import (
    Sections,
    check_block_size,
    check_landmarks,
    is_landmark,
    landmarks_of_segments,
    sections_of_layout,
    sections_of_places,
)


def by_loops(landmarks: list[bool], row: int) -> tuple[list[int], list[int]]:
    """Tokens of the row's own block, and of earlier ones."""
    ends = [place for place in range(row) if landmarks[place]]
    begin = ends[-1] + 1 if ends else 0
    ordinary = [place for place in range(row + 1) if not landmarks[place]]
    return [place for place in ordinary if place >= begin], [place for place in ordinary if place < begin]


def require(sections: Sections, landmarks: Tensor, rows: range) -> None:
    for b, marks in enumerate(landmarks.tolist()):
        for i, row in enumerate(rows):
            own, earlier = by_loops(marks, row)
            assert sections.own[b % len(sections.own), 0, i].nonzero()[:, 0].tolist() == own
            assert sections.earlier[b % len(sections.earlier), 0, i].nonzero()[:, 0].tolist() == earlier


@pytest.mark.parametrize("block_size", [1, 2, 4, 30])
def test_equal_blocks(block_size: int) -> None:
    marks = is_landmark(torch.arange(23), block_size)
    assert marks.nonzero()[:, 0].tolist() == list(range(block_size, 23, block_size + 1))
    require(sections_of_places(torch.arange(23)[None], 23, block_size=block_size), marks[None], range(23))
    require(sections_of_places(torch.arange(7, 19)[None], 23, block_size=block_size), marks[None], range(7, 19))


def test_landmarks_anywhere() -> None:
    marks = torch.tensor([[0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 1]]).bool()
    causal = torch.ones(11, 11, dtype=torch.bool).tril()[None, None]
    sections = sections_of_layout(marks, causal)
    require(sections, marks, range(11))
    assert sections.number[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3]
    assert sections.last[0, 0, :, 0].tolist() == sections.number[0].tolist()


def test_packed_sequences_have_their_own_landmarks() -> None:
    segments = torch.tensor([[4, 4, 4, 4, 4, 1, 1, 4, 4, 4]])
    assert landmarks_of_segments(segments, 2)[0].nonzero()[:, 0].tolist() == [2, 9]


def test_what_has_no_block_is_refused() -> None:
    check_landmarks(torch.tensor([[False, True, False, True]]))
    with pytest.raises(ValueError, match="the one at 0 of row 1 has none"):
        check_landmarks(torch.tensor([[False, True, False], [True, False, True]]))
    with pytest.raises(ValueError, match="the one at 2 of row 0 has none"):
        check_landmarks(torch.tensor([[False, True, True]]))
    with pytest.raises(ValueError, match="block_size must be at least 1 ordinary token, got 0"):
        check_block_size(0)
