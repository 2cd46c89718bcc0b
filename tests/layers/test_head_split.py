"""Heads are divided as asked, with the defaults of the paper and of the compared code."""

from __future__ import annotations

from typing import Any

import pytest

from regard.layers.head_split import HeadSplit, split_of

PLAIN: dict[str, Any] = {
    "num_heads": 5,
    "local_heads": None,
    "head_dim": None,
    "causal": True,
    "shared_qk": None,
    "num_memory": 0,
    "mode": "paper",
}


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, HeadSplit(2, 3, 4, True, 0)),
        ({"causal": False}, HeadSplit(2, 3, 4, False, 0)),
        ({"local_heads": 0, "head_dim": 7, "num_memory": 3}, HeadSplit(0, 5, 7, True, 3)),
        ({"local_heads": 5}, HeadSplit(5, 0, 4, True, 0)),
        ({"mode": "compat"}, HeadSplit(2, 3, 4, True, 0)),
        ({"mode": "compat", "shared_qk": False}, HeadSplit(2, 3, 4, False, 1)),
        ({"mode": "compat", "shared_qk": False, "num_memory": 2}, HeadSplit(2, 3, 4, False, 2)),
        ({"mode": "compat", "shared_qk": False, "causal": False}, HeadSplit(2, 3, 4, False, 0)),
        ({"shared_qk": False}, HeadSplit(2, 3, 4, False, 0)),
    ],
)
def test_defaults_are_filled_in(changed: dict[str, Any], wanted: HeadSplit) -> None:
    assert split_of(20, **{**PLAIN, **changed}) == wanted


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"local_heads": 6}, r"local_heads must be between 0 and num_heads=5, got 6"),
        ({"local_heads": -1}, r"local_heads must be between 0 and num_heads=5, got -1"),
        ({"num_memory": -1}, r"num_memory must not be negative, got -1"),
        ({"head_dim": 0}, r"head_dim must be positive, got 0"),
        ({"num_heads": 3}, r"dim must be a positive multiple of num_heads, got dim=20 and num_heads=3"),
    ],
)
def test_ill_splits_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_of(20, **{**PLAIN, **changed})
