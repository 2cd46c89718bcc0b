"""Numbers as people read them."""

from __future__ import annotations

import pytest

from regard.wording import bytes_in_words, count_in_words, ratio_in_words


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(12.3, "12.30"), (1.0, "1.00"), (0.1, "0.10"), (0.0991, "0.099"), (0.0041, "0.0041"), (0.0, "0.00")],
)
def test_small_ratios_keep_two_digits(ratio: float, words: str) -> None:
    assert ratio_in_words(ratio) == words


def test_sizes_and_counts() -> None:
    assert bytes_in_words(296) == "296 B"
    assert bytes_in_words(1536) == "1.5 KiB"
    assert bytes_in_words(300 * 1024) == "300 KiB"
    assert count_in_words(1, "file") == "1 file"
    assert count_in_words(1204, "class", "classes") == "1,204 classes"
