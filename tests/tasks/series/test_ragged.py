from __future__ import annotations

import numpy as np

from regard.tasks.series.ragged import grouped, in_order, padded, starts_of


def test_padded_stretches_equal_slices() -> None:
    flat = np.arange(1, 14, dtype=np.float32)[:, None] * np.array([1, -1], dtype=np.float32)
    starts, lengths = np.array([0, 11, 5]), np.array([3, 2, 5])
    values, mask = padded(flat, starts, lengths)
    assert values.shape == (3, 5, 2)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        np.testing.assert_array_equal(values[row, :length], flat[start : start + length])
        assert not values[row, length:].any()
        assert mask[row].tolist() == [place < length for place in range(5)]
    assert padded(flat, starts, lengths, width=7)[0].shape == (3, 7, 2)
    assert flat[0, 0] == 1


def test_starts_follow_lengths() -> None:
    assert starts_of(np.array([3, 1, 4])).tolist() == [0, 3, 4]


def test_rows_are_grouped_in_the_order_of_their_first_and_sorted_by_time() -> None:
    names, codes = grouped(["b", "a", "b", "a", "c"])
    assert names == ["b", "a", "c"]
    order, sizes, went_back = in_order(codes, 3)
    assert (order.tolist(), sizes.tolist(), went_back) == ([0, 2, 1, 3, 4], [2, 2, 1], False)
    order, _, went_back = in_order(codes, 3, np.array([5.0, 1, 4, 2, 0]))
    assert (order.tolist(), went_back) == ([2, 0, 1, 3, 4], True)
    # equal times keep the file's order
    order, _, went_back = in_order(codes, 3, np.array([5.0, 1, 5, 2, 0]))
    assert (order.tolist(), went_back) == ([0, 2, 1, 3, 4], False)
