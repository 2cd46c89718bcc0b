"""A low-rank change starts as none and is the product of its factors."""

from __future__ import annotations

import pytest
import torch

from regard.layers.low_rank import LowRankChange


def test_it_is_the_product_of_its_factors() -> None:
    change, x = LowRankChange(5, 7, 3), torch.randn(2, 11, 5)
    assert torch.equal(change(x), torch.zeros(2, 11, 7))
    with torch.no_grad():
        change.lora_b.normal_()
    torch.testing.assert_close(change(x), torch.nn.functional.linear(x, change.lora_b @ change.lora_a))


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="rank=0"):
        LowRankChange(5, 7, 0)
