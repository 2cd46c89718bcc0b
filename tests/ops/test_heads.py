"""Splitting and merging heads."""

from __future__ import annotations

import pytest
import torch

from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads


def test_split_then_merge_is_the_identity() -> None:
    x = torch.randn(2, 7, 15)
    heads = split_heads(x, 3)
    assert heads.shape == (2, 3, 7, 5)
    torch.testing.assert_close(heads[:, 1, :, 2], x[:, :, 7])
    torch.testing.assert_close(merge_heads(heads), x)


def test_repeated_heads_are_neighbours() -> None:
    x = torch.randn(1, 2, 3, 5)
    repeated = repeat_heads(x, 6)
    for head in range(6):
        torch.testing.assert_close(repeated[:, head], x[:, head // 3])


@pytest.mark.parametrize(("dim", "heads"), [(10, 3), (0, 1), (5, 0)])
def test_widths_that_do_not_divide_are_named(dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"dim={dim} and num_heads={heads}"):
        head_width(dim, heads)


def test_key_value_heads_divide_the_query_heads() -> None:
    assert kv_head_count(6, None) == 6
    assert kv_head_count(6, 2) == 2
    for wrong in (4, 0, -2, 12):
        with pytest.raises(ValueError, match=f"num_kv_heads must divide num_heads=6, got {wrong}"):
            kv_head_count(6, wrong)
