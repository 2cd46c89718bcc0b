"""The relative shift as a view, against gathering and against padding and laying out anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.ops.relative_shift import relative_shift, relative_shift_reference

SIZES = [(5, 5), (3, 7), (7, 3), (1, 6), (6, 1), (1, 1), (2, 2)]


def pad_and_lay_out_anew(products: Tensor, keys: int) -> Tensor:
    """Transformer-XL's own way, whose first column belongs to the distance -keys."""
    queries = products.shape[-2]
    widened = torch.nn.functional.pad(products, (1, 1))
    laid_out = widened.reshape(*products.shape[:-2], -1)[..., :-queries]
    return laid_out.unflatten(-1, (queries, queries + keys))[..., -keys:]


@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_all_ways_agree(queries: int, keys: int) -> None:
    products = torch.randn(2, 3, queries, queries + keys - 1)
    found = relative_shift(products, keys)
    assert torch.equal(found, relative_shift_reference(products, keys))
    assert torch.equal(found, pad_and_lay_out_anew(products, keys))
    for i in range(queries):
        for j in range(keys):
            assert torch.equal(found[..., i, j], products[..., i, j + queries - 1 - i])


@pytest.mark.parametrize(("queries", "keys"), [size for size in SIZES if size[0] <= size[1]])
def test_the_future_needs_one_column(queries: int, keys: int) -> None:
    products = torch.randn(2, queries, queries + keys - 1)
    whole, cut = relative_shift(products, keys), relative_shift(products[..., : keys + 1].contiguous(), keys)
    past = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    assert torch.equal(whole[:, past], cut[:, past])
    assert cut.isfinite().all()


def test_it_is_a_view() -> None:
    products = torch.randn(2, 5, 11)
    assert relative_shift(products, 7).untyped_storage().data_ptr() == products.untyped_storage().data_ptr()


def test_gradients_go_back_to_the_entries() -> None:
    products = torch.randn(2, 3, 4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: relative_shift(x, 6), (products,))
    few = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: relative_shift(x, 6), (few,))


def test_too_few_distances_are_named() -> None:
    with pytest.raises(ValueError, match="4 queries and 6 keys need 7 distances, got 6"):
        relative_shift(torch.zeros(4, 6), 6)
