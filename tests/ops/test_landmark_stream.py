"""Landmarks between tokens: where they stand behind an unfinished block, and what is predicted."""

from __future__ import annotations

import pytest
import torch

from regard.ops.landmark_stream import IGNORED, spaced_count, spacing, stream_targets

MARK = 99


def by_lists(tokens: list[int], before: int, block_size: int) -> list[int]:
    spaced, filled = [], before
    for token in tokens:
        spaced.append(token)
        filled += 1
        if filled == block_size:
            spaced.append(MARK)
            filled = 0
    return spaced


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 12, 20])
@pytest.mark.parametrize("block_size", [1, 2, 5, 11])
def test_a_landmark_follows_every_block(tokens: int, block_size: int) -> None:
    ids = torch.randint(0, 50, (2, tokens))
    for before in range(block_size):
        spaced = spacing(tokens, before=torch.tensor([before]), longest=before, block_size=block_size)
        found = spaced.insert(ids, MARK)
        assert found.tolist() == [by_lists(row, before, block_size) for row in ids.tolist()]
        assert torch.equal(found.gather(1, spaced.places.expand(2, -1)), ids)


def test_rows_may_stand_at_different_places_of_their_block() -> None:
    ids, block_size = torch.randint(0, 50, (3, 8)), 5
    before, counts = torch.tensor([0, 4, 2]), torch.tensor([8, 3, 0])
    spaced = spacing(8, before=before, longest=4, block_size=block_size)
    found = spaced.insert(ids, MARK)
    ends = spaced_count(counts, before=before, block_size=block_size)
    for row in range(3):
        expected = by_lists(ids[row, : counts[row]].tolist(), int(before[row]), block_size)
        assert ends[row] == len(expected)
        assert found[row, : ends[row]].tolist() == expected
    assert torch.equal(found.gather(1, spaced.places), ids)


def test_targets_jump_over_landmarks() -> None:
    ids = torch.tensor([[3, 4, MARK, 5, 7, MARK, 6], [7, 8, MARK, 9, 3, MARK, 2]])
    targets = stream_targets(ids, landmark_id=MARK, end_id=7)
    assert targets.tolist() == [
        [4, 5, IGNORED, 7, IGNORED, IGNORED, IGNORED],
        [IGNORED, 9, IGNORED, 3, 2, IGNORED, IGNORED],
    ]
    assert stream_targets(ids, landmark_id=MARK, end_id=None)[1, 0] == 8
    assert stream_targets(ids[:, :6], landmark_id=MARK, end_id=None)[:, 4].tolist() == [IGNORED, IGNORED]
