"""Bi-level routing: choice and ties, the gather form restated by loops, and the fast form in any number of slices."""

from __future__ import annotations

import pytest
import torch

from regard.ops import bilevel_routing
from regard.ops.bilevel_routing import is_dense, route, routed_attention, routed_attention_reference, routed_weights


def by_loop(
    q: torch.Tensor,
    kv: torch.Tensor,
    index: torch.Tensor,
    *,
    num_heads: int,
    scale: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Region by region, head by head."""
    batch, regions, queries, width = q.shape
    values = kv.shape[-1] - width
    y = q.new_empty(batch, regions, queries, values)
    for row in range(batch):
        for region in range(regions):
            chosen = [kv[row, int(number)] for number in index[row, region]]
            if weights is not None:
                chosen = [part * factor for part, factor in zip(chosen, weights[row, region], strict=True)]
            keys = torch.cat(chosen)
            for head in range(num_heads):
                own = slice(head * width // num_heads, (head + 1) * width // num_heads)
                out = slice(head * values // num_heads, (head + 1) * values // num_heads)
                shares = (scale * q[row, region, :, own] @ keys[:, own].T).softmax(dim=-1)
                y[row, region, :, out] = shares @ keys[:, width:][:, out]
    return y


def inputs(regions: int = 5, topk: int = 3, keys: int = 7) -> dict[str, torch.Tensor]:
    order = torch.rand(2, regions, regions).argsort(dim=-1)
    return {
        "q": torch.randn(2, regions, 4, 6, dtype=torch.float64),
        "kv": torch.randn(2, regions, keys, 6 + 10, dtype=torch.float64),
        "index": order[..., :topk],
    }


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("slice_bytes", [1, 2 * 2 * 7 * 16 * 8, 1 << 30])
def test_all_forms_are_the_loop(monkeypatch: pytest.MonkeyPatch, slice_bytes: int, soft: bool) -> None:
    monkeypatch.setattr(bilevel_routing, "SLICE_BYTES", slice_bytes)
    given = inputs(topk=2)
    weights = torch.rand(2, 5, 2, dtype=torch.float64).softmax(dim=-1) if soft else None
    options = {"num_heads": 2, "scale": 0.3, "weights": weights}
    expected = by_loop(**given, **options)
    torch.testing.assert_close(routed_attention_reference(**given, **options), expected)
    q, *rest = given.values()
    torch.testing.assert_close(routed_attention(q, *rest, **options), expected)


def test_masked_form_is_the_loop() -> None:
    given = inputs(regions=7, topk=4)
    assert is_dense(7, 4, queries=4, keys=7)
    leaves = (given["q"].requires_grad_(), given["kv"].requires_grad_())
    upstream = torch.randn(2, 7, 4, 10, dtype=torch.float64)
    found = []
    for form in (by_loop, routed_attention):
        y = form(given["q"], given["kv"], given["index"], num_heads=2, scale=0.3)
        found.append((y, *torch.autograd.grad((y * upstream).sum(), leaves)))
    torch.testing.assert_close(found[1], found[0])


def test_masks_are_for_small_maps_of_which_half_is_chosen() -> None:
    assert is_dense(49, 25, queries=16, keys=16)
    assert not is_dense(49, 24, queries=16, keys=16)
    assert not is_dense(49, 40, queries=64, keys=64)


def test_gradients_are_those_of_the_loop() -> None:
    given = inputs(topk=2)
    weights = torch.rand(2, 5, 2, dtype=torch.float64).requires_grad_()
    leaves = (given["q"].requires_grad_(), given["kv"].requires_grad_(), weights)
    upstream = torch.randn(2, 5, 4, 10, dtype=torch.float64)
    found = []
    for form in (by_loop, routed_attention_reference, routed_attention):
        y = form(given["q"], given["kv"], given["index"], num_heads=2, scale=0.3, weights=weights)
        found.append(torch.autograd.grad((y * upstream).sum(), leaves))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_the_order_of_chosen_regions_does_not_matter() -> None:
    given = inputs()
    shuffled = {**given, "index": given["index"][..., [2, 0, 1]]}
    results = [routed_attention(*each.values(), num_heads=2, scale=0.3) for each in (given, shuffled)]
    torch.testing.assert_close(*results)


def test_all_regions_are_full_attention() -> None:
    given = inputs(topk=5)
    whole = routed_attention(given["q"], given["kv"], None, num_heads=2, scale=0.3)
    torch.testing.assert_close(whole, by_loop(**given, num_heads=2, scale=0.3))


def test_weights_are_distributions() -> None:
    shares = routed_weights(*inputs().values(), num_heads=2, scale=0.3)
    assert shares.shape == (2, 5, 2, 4, 21)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, 5, 2, 4, dtype=torch.float64))


def test_the_largest_affinities_are_chosen_best_first() -> None:
    q, k = torch.randn(2, 3, 11, 5, dtype=torch.float64)
    chosen = route(q, k, topk=4, scale=0.7)
    affinity = 0.7 * torch.einsum("brd,bsd->brs", q, k)
    for row in range(3):
        for region in range(11):
            order = sorted(range(11), key=lambda number: -float(affinity[row, region, number]))
            assert chosen.index[row, region].tolist() == order[:4]
            torch.testing.assert_close(chosen.weights[row, region], affinity[row, region, order[:4]].softmax(dim=0))


def test_of_equal_affinities_the_first_counts() -> None:
    k = torch.ones(1, 64, 3)
    k[0, 40] = 2
    assert route(torch.ones(1, 1, 3), k, topk=5, scale=1.0).index.tolist() == [[[40, 0, 1, 2, 3]]]


def test_affinities_of_narrow_numbers_are_wide() -> None:
    q, k = torch.randn(2, 1, 6, 8).bfloat16()
    narrow, wide = route(q, k, topk=3, scale=0.5), route(q.float(), k.float(), topk=3, scale=0.5)
    assert torch.equal(narrow.index, wide.index)
    assert torch.equal(narrow.weights, wide.weights)
