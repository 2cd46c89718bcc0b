"""Windows and combs: who shares one, that cutting and merging are inverse, and the dense map."""

from __future__ import annotations

import pytest
import torch

from regard.ops.windows import (
    Layout,
    attend_in_windows,
    dense_map,
    merge_windows,
    pad_to_multiple,
    padded_space,
    split_windows,
    window_numbers,
    window_weights,
)

LAYOUTS: tuple[Layout, ...] = ("window", "grid")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merging_is_the_inverse_of_cutting(layout: Layout) -> None:
    x = torch.randn(2, 6, 15, 7)
    windows = split_windows(x, (3, 5), layout=layout)
    assert windows.shape == (2 * 2 * 3, 15, 7)
    assert torch.equal(merge_windows(windows, (3, 5), (6, 15), layout=layout), x)


def test_windows_are_contiguous_and_combs_are_not() -> None:
    cpu = torch.device("cpu")
    assert window_numbers((4, 6), (2, 3), device=cpu)[1].tolist() == [3, 4, 5, 9, 10, 11]
    assert window_numbers((4, 6), (2, 3), layout="grid", device=cpu)[1].tolist() == [1, 3, 5, 13, 15, 17]
    assert window_numbers((4, 6), (2, 3), layout="grid", device=cpu)[2].tolist() == [6, 8, 10, 18, 20, 22]


def test_padding_has_no_number() -> None:
    numbers = window_numbers((2, 3), (2, 2), device=torch.device("cpu"))
    assert numbers.tolist() == [[0, 1, 3, 4], [2, -1, 5, -1]]


def test_padding_is_at_the_bottom_and_at_the_right() -> None:
    x = torch.ones(1, 3, 4, 2)
    padded = pad_to_multiple(x, (2, 3))
    assert padded.shape == (1, 4, 6, 2)
    assert padded_space((3, 4), (2, 3)) == (4, 6)
    assert torch.equal(padded[:, :3, :4], x)
    assert float(padded.sum()) == float(x.sum())
    assert pad_to_multiple(x, (3, 2)) is x


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_is_that_of_the_dense_map(layout: Layout) -> None:
    qkv = torch.randn(2, 4, 6, 3 * 10, dtype=torch.float64)
    bias = torch.randn(2, 6, 6, dtype=torch.float64)
    options = {"num_heads": 2, "layout": layout, "bias": bias[None]}
    mixed = attend_in_windows(qkv, (2, 3), **options)
    numbers = window_numbers((4, 6), (2, 3), layout=layout, device=qkv.device)
    dense = dense_map(window_weights(qkv, (2, 3), **options), numbers, 24)
    values = qkv[..., 20:].reshape(2, 24, 2, 5).transpose(1, 2)
    expected = (dense @ values).transpose(1, 2).reshape(2, 4, 6, 10)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(dense.sum(dim=-1), torch.ones(2, 2, 24, dtype=torch.float64))


def test_windows_must_fill_the_map() -> None:
    with pytest.raises(ValueError, match="windows of 2 x 4 positions do not fill a map of 4 x 6"):
        split_windows(torch.zeros(1, 4, 6, 3), (2, 4))
    with pytest.raises(ValueError, match="windows of 0 x 2 positions"):
        attend_in_windows(torch.zeros(1, 4, 6, 3), (0, 2), num_heads=1)
