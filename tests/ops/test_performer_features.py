"""Random features against their formulas, attention through them against the whole map, and what they approximate."""

from __future__ import annotations

import math

import pytest
import torch

from regard.ops.performer_features import (
    exp_kernel_features,
    feature_count,
    orthogonal_directions,
    performer_attention,
    performer_attention_reference,
    performer_attention_with_state,
    relu_kernel_features,
)

DOUBLE = torch.float64


def test_features_are_the_formulas() -> None:
    x, directions = torch.randn(2, 3, 5, 7, dtype=DOUBLE), torch.randn(11, 7, dtype=DOUBLE)
    relu = relu_kernel_features(x, directions)
    queries = exp_kernel_features(x, directions, queries=True)
    keys = exp_kernel_features(x, directions, queries=False)
    for b in range(2):
        for h in range(3):
            p = [[float(x[b, h, n] @ row) / 7**0.25 for row in directions] for n in range(5)]
            highest = max(max(row) for row in p)
            for n in range(5):
                size = float(x[b, h, n] @ x[b, h, n]) / (2 * math.sqrt(7))
                for r in range(11):
                    assert float(relu[b, h, n, r]) == pytest.approx(max(p[n][r], 0) + 1e-3)
                    of_query = (math.exp(p[n][r] - size - max(p[n])) + 1e-4) / math.sqrt(11)
                    of_key = (math.exp(p[n][r] - size - highest) + 1e-4) / math.sqrt(11)
                    assert float(queries[b, h, n, r]) == pytest.approx(of_query)
                    assert float(keys[b, h, n, r]) == pytest.approx(of_key)


def test_directions_are_orthogonal_in_groups_and_vary_in_length() -> None:
    directions = orthogonal_directions(17, 7, generator=torch.Generator().manual_seed(0))
    units = torch.nn.functional.normalize(directions, dim=1)
    for group in units.split(7):
        torch.testing.assert_close(group @ group.T, torch.eye(len(group)), rtol=0, atol=1e-5)
    assert directions.norm(dim=1).std() > 0.1


def test_many_exponential_features_approximate_softmax() -> None:
    q, k, v = (0.5 * torch.randn(1, 1, 13, 8, dtype=DOUBLE) for _ in range(3))
    directions = orthogonal_directions(20_000, 8, generator=torch.Generator().manual_seed(0)).double()
    phi_q, phi_k = (exp_kernel_features(x, directions, queries=which) for x, which in ((q, True), (k, False)))
    expected = (q @ k.transpose(2, 3) / math.sqrt(8)).softmax(dim=-1) @ v
    found = performer_attention(phi_q, phi_k, v, causal=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 67])
def test_linear_form_is_the_whole_map(tokens: int, causal: bool) -> None:
    leaves = [torch.rand(2, 3, tokens, width, dtype=DOUBLE).requires_grad_() for width in (5, 5, 7)]
    mask = torch.arange(tokens) < torch.tensor([[tokens], [max(1, tokens // 2)]])
    weight = torch.randn(2, 3, tokens, 7, dtype=DOUBLE) * mask[:, None, :, None]
    results = []
    for form in (performer_attention, performer_attention_reference):
        y = form(*leaves, causal=causal, mask=mask)
        results.append([y * mask[:, None, :, None], *torch.autograd.grad((y * weight).sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_epsilon_is_added_to_every_sum_of_features() -> None:
    phi_q, phi_k, v = (torch.rand(1, 1, 3, 2, dtype=DOUBLE) * 1e-5 for _ in range(3))
    found = performer_attention(phi_q, phi_k, v, causal=True)
    for row in range(3):
        weights = [float(phi_q[0, 0, row] @ phi_k[0, 0, j]) for j in range(row + 1)]
        total = sum(weights) + 1e-6 * float(phi_q[0, 0, row].sum())
        expected = sum(weight * v[0, 0, j] for j, weight in enumerate(weights)) / total
        torch.testing.assert_close(found[0, 0, row], expected)


def test_a_state_carries_on() -> None:
    phi_q, phi_k, v = (torch.rand(2, 3, 29, width, dtype=DOUBLE) for width in (5, 5, 7))
    state, pieces = torch.zeros(2, 3, 5, 8, dtype=DOUBLE), []
    for start, stop in ((0, 1), (1, 20), (20, 29)):
        part = (x[:, :, start:stop] for x in (phi_q, phi_k, v))
        y, state = performer_attention_with_state(*part, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=2), performer_attention(phi_q, phi_k, v, causal=True))


def test_padding_has_no_part_in_the_maximum_and_does_not_overflow() -> None:
    x, directions = torch.randn(1, 2, 5, 4), torch.randn(6, 4)
    mask = torch.tensor([[True, True, True, False, False]])
    far = torch.where(mask[:, None, :, None], x, 1e4)
    found = exp_kernel_features(far, directions, queries=False, mask=mask)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, :, :3], exp_kernel_features(x[:, :, :3], directions, queries=False))


def test_a_constant_maximum_changes_gradients_alone() -> None:
    x, directions = torch.randn(1, 1, 4, 3, dtype=DOUBLE, requires_grad=True), torch.randn(5, 3, dtype=DOUBLE)
    results = []
    for constant in (False, True):
        y = exp_kernel_features(x, directions, queries=False, constant_maximum=constant)
        results.append((y, torch.autograd.grad(y.sum(), x)[0]))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert (results[0][1] - results[1][1]).abs().max() > 1e-3
    assert torch.autograd.gradcheck(lambda x: exp_kernel_features(x, directions, queries=False), x)


@pytest.mark.parametrize(("head_dim", "divisor"), [(1, 1.0), (2, 9.0), (8, 0.0), (8, -1.0)])
def test_sizes_without_features_are_refused(head_dim: int, divisor: float) -> None:
    with pytest.raises(ValueError, match=f"got d={head_dim} and divisor={divisor}"):
        feature_count(head_dim, divisor=divisor)


def test_the_number_of_features() -> None:
    assert [feature_count(64), feature_count(64, divisor=8.0), feature_count(8)] == [266, 33, 16]
