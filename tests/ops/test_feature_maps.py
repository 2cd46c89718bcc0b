"""Feature maps against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from regard.ops.feature_maps import (
    elu_features,
    exp_features,
    project_per_head,
    relu_features,
    softmax_features,
    taylor_features,
)


def test_projection_has_a_matrix_and_a_scalar_per_head() -> None:
    x, weight, bias = torch.randn(2, 3, 11, 5), torch.randn(3, 5, 7), torch.randn(1, 3, 1, 1)
    expected = torch.einsum("hdf,bhnd->bhnf", weight, x) + bias
    torch.testing.assert_close(project_per_head(x, weight, bias=bias), expected)
    square = torch.randn(3, 5, 5)
    torch.testing.assert_close(project_per_head(x, square, skip=True), x + torch.einsum("hdf,bhnd->bhnf", square, x))


def test_softmax_features_are_two_separate_softmaxes() -> None:
    z = torch.randn(3, 5)
    features = softmax_features(z)
    for row in range(3):
        up, down = [math.exp(value) for value in z[row]], [math.exp(-value) for value in z[row]]
        expected = [value / sum(up) for value in up] + [value / sum(down) for value in down]
        torch.testing.assert_close(features[row], torch.tensor(expected))
    assert torch.equal(softmax_features(z, fullspace=False), features[:, :5])


def test_exponential_features_with_and_without_stabilising() -> None:
    z = torch.randn(3, 5)
    plain = torch.stack([torch.tensor([math.exp(s * float(x)) for s in (1, -1) for x in row]) for row in z])
    torch.testing.assert_close(exp_features(z, stabilize=False), plain)
    largest, smallest = z.amax(-1, keepdim=True), z.amin(-1, keepdim=True)
    torch.testing.assert_close(exp_features(z), torch.cat(((z - largest).exp(), (smallest - z).exp()), dim=-1))
    assert exp_features(1e4 * z).isfinite().all()


def test_activations() -> None:
    z = torch.tensor([-2.0, 0.0, 3.0])
    torch.testing.assert_close(elu_features(z), torch.tensor([math.exp(-2), 1.0, 4.0]))
    torch.testing.assert_close(relu_features(z), torch.tensor([1e-12, 1e-12, 3.0]))


@pytest.mark.parametrize("width", [3, 5])
def test_products_of_taylor_features_expand_the_exponential(width: int) -> None:
    q, k = torch.randn(7, width, dtype=torch.float64), torch.randn(11, width, dtype=torch.float64)
    scores = q @ k.T / math.sqrt(width)
    torch.testing.assert_close(taylor_features(q) @ taylor_features(k).T, 1 + scores + scores**2 / 2)
    assert taylor_features(q).shape == (7, 1 + width + width**2)


def test_bfloat16_is_computed_in_float32_and_float64_stays() -> None:
    z = torch.randn(3, 5)
    assert softmax_features(z.bfloat16()).dtype == torch.float32
    assert exp_features(z.double()).dtype == torch.float64
