"""Centroids: how they begin, when and how they move, and that recomputed activations do not move them twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.layers.centroids import Centroids
from regard.ops.centroid_update import cluster_sums
from regard.ops.routing_form import Mode, on_sphere

IN_MODES = pytest.mark.parametrize("mode", ["paper", "compat"])


def made(mode: Mode, **changes: Any) -> Centroids:
    options: dict[str, Any] = {"num_heads": 2, "num_clusters": 3, "head_dim": 4, "mode": mode, "decay": 0.9, **changes}
    return Centroids(**options).double()


def tokens(mode: Mode, seed: int = 0) -> Tensor:
    x = torch.randn(2, 2, 13, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return on_sphere(x, mode=mode)


@IN_MODES
def test_begin_on_the_sphere_and_survive_bfloat16(mode: Mode) -> None:
    means = Centroids(num_heads=2, num_clusters=5, head_dim=8, mode=mode).means
    wanted = 8**0.5 if mode == "paper" else 1.0
    torch.testing.assert_close(means.norm(dim=-1), torch.full((2, 5), wanted), rtol=0.02, atol=0)
    assert torch.equal(means.bfloat16().float(), means)


def test_compat_goes_towards_the_direction_of_its_tokens() -> None:
    centroids, items = made("compat"), tokens("compat")
    before = centroids.means.clone()
    counts, sums = cluster_sums(items, before)
    centroids.observe(items)
    assert torch.equal(centroids.means, before)
    centroids.update()
    for h in range(2):
        for c in range(3):
            aim = sums[h, c] / sums[h, c].norm() if counts[h, c] > 0 else before[h, c]
            torch.testing.assert_close(centroids.means[h, c], 0.9 * before[h, c] + 0.1 * aim)
    assert centroids.observed is None


def test_paper_divides_averages_of_sums_by_averages_of_counts() -> None:
    centroids = made("paper")
    counts, sums = torch.ones(2, 3, dtype=torch.float64), centroids.means.clone()
    for seed in range(3):
        items = tokens("paper", seed)
        new_counts, new_sums = cluster_sums(items, centroids.means)
        counts, sums = 0.9 * counts + 0.1 * new_counts, 0.9 * sums + 0.1 * new_sums
        centroids.observe(items)
        centroids.update()
        torch.testing.assert_close(centroids.means, sums / counts[..., None], rtol=1e-4, atol=1e-6)


def test_means_of_members_stay_where_they_are() -> None:
    centroids = made("paper", num_heads=1, num_clusters=1)
    items = centroids.means.expand(1, 1, 7, 4).clone()
    for _ in range(5):
        centroids.observe(items)
        centroids.update()
    torch.testing.assert_close(centroids.means[0, 0], items[0, 0, 0], rtol=1e-4, atol=1e-6)


@IN_MODES
def test_calls_before_an_update_are_averaged(mode: Mode) -> None:
    centroids, seen = made(mode), []
    for seed in range(3):
        single = made(mode)
        single.load_state_dict(centroids.state_dict())
        single.observe(tokens(mode, seed))
        assert single.observed is not None
        seen.append(single.observed)
        centroids.observe(tokens(mode, seed))
    assert centroids.observed is not None
    for found, parts in zip(centroids.observed, zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(parts).mean(dim=0))


@IN_MODES
def test_the_same_call_twice_moves_as_once(mode: Mode) -> None:
    once, twice = made(mode), made(mode)
    twice.load_state_dict(once.state_dict())
    for centroids, calls in ((once, 1), (twice, 2)):
        for _ in range(calls):
            centroids.observe(tokens(mode))
        centroids.update()
    torch.testing.assert_close(once.means, twice.means)


@IN_MODES
def test_move_when_the_parameters_have_changed(mode: Mode) -> None:
    centroids = made(mode).train()
    if mode == "compat":
        centroids.initialised.fill_(True)
    before = centroids.means.clone()
    for _ in range(2):
        centroids.settle(tokens(mode), None, version=1)
        centroids.observe(tokens(mode))
    assert torch.equal(centroids.means, before)
    centroids.settle(tokens(mode), None, version=2)
    assert not torch.equal(centroids.means, before)


@IN_MODES
def test_end_of_training_moves_them(mode: Mode) -> None:
    centroids = made(mode).train()
    before = centroids.means.clone()
    centroids.observe(tokens(mode))
    assert not torch.equal(centroids.eval().means, before)
    after = centroids.means.clone()
    assert torch.equal(centroids.eval().means, after)


def test_compat_begins_with_kmeans_once() -> None:
    centroids, items = made("compat").train(), tokens("compat")
    centroids.settle(items, torch.zeros(2, 13, dtype=torch.bool), version=0)
    assert not bool(centroids.initialised)
    before = centroids.means.clone()
    centroids.settle(items, None, version=0)
    assert bool(centroids.initialised)
    assert not torch.equal(centroids.means, before)
    torch.testing.assert_close(centroids.means.norm(dim=-1), torch.ones(2, 3, dtype=torch.float64))
    first = centroids.means.clone()
    centroids.settle(tokens("compat", 1), None, version=0)
    assert torch.equal(centroids.means, first)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_clusters": 0}, r"num_clusters must be positive, got 0"),
        ({"mode": "official"}, r"mode must be one of paper, compat, got 'official'"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**{"mode": "paper", **changed})
