"""Online k-means against loops: nearest centroids, sums, directions, smoothed averages, the commitment loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.ops.centroid_update import assign, cluster_sums, commitment_loss, directions, kmeans, smoothed_means
from regard.ops.routing_form import on_sphere


def sample(batch: int = 2, heads: int = 3) -> tuple[Tensor, Tensor]:
    items = on_sphere(torch.randn(batch, heads, 11, 5, dtype=torch.float64), mode="compat")
    return items, torch.randn(heads, 4, 5, dtype=torch.float64)


def test_sums_count_real_tokens_of_the_whole_batch() -> None:
    items, means = sample()
    mask = torch.rand(2, 11) < 0.6
    nearest = assign(items, means)
    counts, sums = cluster_sums(items, means, mask)
    expected_counts, expected_sums = torch.zeros_like(counts), torch.zeros_like(sums)
    for b in range(2):
        for h in range(3):
            for n in range(11):
                best = max(range(4), key=lambda c: float(items[b, h, n] @ means[h, c]))
                assert int(nearest[b, h, n]) == best
                if mask[b, n]:
                    expected_counts[h, best] += 1
                    expected_sums[h, best] += items[b, h, n]
    torch.testing.assert_close(counts, expected_counts)
    torch.testing.assert_close(sums, expected_sums)
    everything, _ = cluster_sums(items, means)
    assert everything.sum(dim=-1).tolist() == [22.0] * 3


def test_an_empty_cluster_keeps_its_centroid() -> None:
    means = torch.randn(1, 2, 3)
    moved = directions(means, torch.tensor([[0.0, 2.0]]), torch.tensor([[[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]]]))
    torch.testing.assert_close(moved, torch.stack((means[0, 0], torch.tensor([0.6, 0.0, 0.8])))[None])


def test_smoothing_keeps_the_total_and_divides_by_something() -> None:
    counts, sums = torch.tensor([[0.0, 3.0, 5.0]]), torch.randn(1, 3, 4)
    means = smoothed_means(counts, sums)
    smoothed = sums / means
    torch.testing.assert_close(smoothed[..., 0].sum(), torch.tensor(8.0))
    torch.testing.assert_close(smoothed[0, 1:, 0], counts[0, 1:], rtol=1e-4, atol=0)
    assert bool(means.isfinite().all())


def test_commitment_loss_is_the_mean_squared_distance_of_real_tokens() -> None:
    items, means = sample()
    means.requires_grad_()
    mask = torch.rand(2, 11) < 0.6
    errors = [
        (items[b, h, n] - means[h, int((items[b, h, n] @ means[h].T).argmax())]).square().mean()
        for b in range(2)
        for h in range(3)
        for n in range(11)
        if mask[b, n]
    ]
    torch.testing.assert_close(commitment_loss(items, means, mask), torch.stack(errors).mean().detach())
    torch.testing.assert_close(
        commitment_loss(items[:1, :, mask[0]], means), commitment_loss(items[:1], means, mask[:1])
    )
    assert not commitment_loss(items, means).requires_grad
    assert float(commitment_loss(items, means, torch.zeros_like(mask))) == 0


def test_gradient_draws_tokens_to_their_centroids() -> None:
    items, means = sample(batch=1, heads=1)
    items.requires_grad_()
    (gradient,) = torch.autograd.grad(commitment_loss(items, means), items)
    own = means[0, assign(items, means)[0, 0]]
    torch.testing.assert_close(gradient[0, 0], 2 * (items[0, 0] - own).detach() / items.numel())


def test_kmeans_finds_separate_groups() -> None:
    centres = torch.eye(3, 6)
    items = on_sphere(centres.repeat(20, 1) + 0.02 * torch.randn(60, 6), mode="compat").expand(1, 2, 60, 6)
    torch.manual_seed(3)
    best = min(float(commitment_loss(items, kmeans(items, 3, iterations=10))) for _ in range(5))
    assert best < 1e-3


def test_kmeans_takes_real_tokens_alone_and_repeats_them_where_there_are_few() -> None:
    items, _ = sample()
    mask = torch.zeros(2, 11, dtype=torch.bool)
    mask[1, 4] = True
    found = kmeans(items, 4, iterations=0, mask=mask)
    torch.testing.assert_close(found, items[1, :, 4, None].expand(3, 4, 5))
    with pytest.raises(ValueError, match="k-means needs at least 1 real token, got 0"):
        kmeans(items, 4, iterations=1, mask=torch.zeros_like(mask))
