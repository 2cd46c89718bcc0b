"""What a layer knows of positions: vectors by distance and maps by position say the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regard.layers.urpe_positions import URPEPositions
from regard.ops.decay import alibi_slopes
from regard.ops.toeplitz import toeplitz

KINDS = [("unique", "unique"), ("log", "log"), ("transformer_xl", "unique"), ("alibi", "none"), ("none", "log")]


def made(biases: Any, factors: Any, **options: Any) -> URPEPositions:
    positions = URPEPositions(
        12, 3, biases=biases, factors=factors, max_positions=17, num_buckets=8, max_distance=9, **options
    ).double()
    with torch.no_grad():
        for parameter in positions.parameters():
            parameter.add_(torch.randn_like(parameter))
    return positions


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("biases", "factors"), KINDS)
def test_vectors_and_maps_agree_on_the_past(biases: str, factors: str, causal: bool) -> None:
    positions, q = made(biases, factors, causal=causal), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    terms = positions.terms(q, 9)
    found = positions.maps(q, torch.arange(4, 9).expand(2, 5), 9)
    past = torch.ones(5, 9, dtype=torch.bool).tril(4)
    wanted_factors = None if terms.factors is None else toeplitz(terms.factors, 5)[None]
    wanted_bias = terms.bias if terms.biases is None else toeplitz(terms.biases, 5)[None]
    for ours, wanted in zip(found, (wanted_factors, wanted_bias), strict=True):
        assert (ours is None) == (wanted is None)
        if ours is not None and wanted is not None:
            torch.testing.assert_close(ours.expand(2, 3, 5, 9)[..., past], wanted.expand(2, 3, 5, 9)[..., past])


def test_alibi_falls_with_the_distance() -> None:
    terms = made("alibi", "none").terms(torch.zeros(1, 3, 4, 4), 4)
    assert terms.biases is not None
    for h, slope in enumerate(alibi_slopes(3)):
        torch.testing.assert_close(terms.biases[h], -slope * torch.tensor([3.0, 2, 1, 0, 1, 2, 3]).double())


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="18 tokens are more than max_positions=17"):
        made("log", "unique").check_length(18)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"biases": "rope"}, "unique, log, transformer_xl, alibi, none, got 'rope'"),
        ({"factors": "alibi"}, "unique, log, none, got 'alibi'"),
        ({"max_positions": 0}, "max_positions must be positive, got 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"biases": "unique", "factors": "unique", "max_positions": 5, **options}
    with pytest.raises(ValueError, match=message):
        URPEPositions(12, 3, **given)
