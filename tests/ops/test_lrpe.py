"""LRPE against distances, written out by loops."""

from __future__ import annotations

import math

import pytest
import torch

from regard.ops.lrpe import lrpe, lrpe_frequencies, lrpe_scores_reference

PLACES = torch.tensor([[0, 1, 2, 5, 11, 12, 13], [3, 4, 0, 1, 2, 99_991, 7]])


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k = torch.randn(2, 2, 3, 7, 5, dtype=dtype)
    theta = lrpe_frequencies(3, 5).to(dtype) * (1 + 0.1 * torch.rand(3, 1, 5, dtype=dtype))
    return q, k, theta


def test_frequencies_run_over_all_heads() -> None:
    theta = lrpe_frequencies(3, 5)
    assert theta.shape == (3, 1, 5)
    for head in range(3):
        for channel in range(5):
            assert float(theta[head, 0, channel]) == pytest.approx(10000 ** (-2 * (5 * head + channel) / 15), rel=1e-5)


def test_products_depend_on_distances() -> None:
    q, k, theta = inputs()
    q_encoded, k_encoded = lrpe(q, k, theta, PLACES)
    scores = q_encoded @ k_encoded.transpose(2, 3)
    torch.testing.assert_close(scores, lrpe_scores_reference(q, k, theta, PLACES))
    for b, h, i, j in ((0, 0, 6, 0), (1, 2, 4, 3), (1, 1, 0, 6), (0, 2, 2, 2)):
        distance = int(PLACES[b, i] - PLACES[b, j])
        expected = sum(
            float(q[b, h, i, c] * k[b, h, j, c]) * math.cos(distance * float(theta[h, 0, c])) for c in range(5)
        )
        assert float(scores[b, h, i, j]) == pytest.approx(expected, abs=1e-9)


def test_cosines_come_first() -> None:
    q, k, theta = inputs()
    q_encoded, k_encoded = lrpe(q, k, theta, PLACES[:1])
    assert q_encoded.shape == k_encoded.shape == (2, 3, 7, 10)
    angles = PLACES[0, :, None] * theta
    torch.testing.assert_close(q_encoded[..., :5], q * angles.cos())
    torch.testing.assert_close(k_encoded[..., 5:], k * angles.sin())
    torch.testing.assert_close(q_encoded[:, :, 0], torch.cat((q[:, :, 0], torch.zeros_like(q[:, :, 0])), dim=-1))


def test_gradients_are_those_of_distances() -> None:
    q, k, theta = (x.requires_grad_() for x in inputs())
    weight = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    q_encoded, k_encoded = lrpe(q, k, theta, PLACES)
    forms = (q_encoded @ k_encoded.transpose(2, 3), lrpe_scores_reference(q, k, theta, PLACES))
    ours, expected = (torch.autograd.grad((form * weight).sum(), (q, k, theta)) for form in forms)
    for gradient, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-6)
    small = tuple(x[..., :2, :].detach().requires_grad_() for x in (q[:1, :1], k[:1, :1]))
    assert torch.autograd.gradcheck(lambda *x: lrpe(*x, PLACES[:1, :2]), (*small, theta[:1].detach().requires_grad_()))


def test_far_positions_keep_their_precision() -> None:
    q, k, theta = inputs()
    near = lrpe_scores_reference(q, k, theta, PLACES[:1])
    q_encoded, k_encoded = lrpe(q.float(), k.float(), theta.float(), PLACES[:1] + 8192)
    scores = (q_encoded @ k_encoded.transpose(2, 3)).double()
    assert (scores - near).norm() / near.norm() < 1e-2
    low = lrpe(q.bfloat16(), k.bfloat16(), theta.float(), PLACES[:1])
    assert low[0].dtype == torch.bfloat16
    exact = lrpe(q, k, theta, PLACES[:1])[0]
    assert (low[0].double() - exact).norm() / exact.norm() < 0.01


def test_autocast_does_not_narrow_the_angles() -> None:
    q, k, theta = inputs(torch.float32)
    plain = lrpe(q, k, theta, PLACES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for ours, expected in zip(lrpe(q, k, theta, PLACES), plain, strict=True):
            torch.testing.assert_close(ours, expected)


def test_ill_shapes_are_named() -> None:
    q, k, theta = inputs()
    with pytest.raises(ValueError, match=r"one shape \(b, h, n, d\), got \(2, 3, 7, 5\) and \(2, 3, 6, 5\)"):
        lrpe(q, k[:, :, :6], theta, PLACES)
    with pytest.raises(ValueError, match=r"theta has shape \(2, 1, 5\), it must be \(3, 1, 5\)"):
        lrpe(q, k, theta[:2], PLACES)
    with pytest.raises(ValueError, match=r"positions have shape \(2, 6\), they must be \(2, 7\) or \(1, 7\)"):
        lrpe(q, k, theta, PLACES[:, :6])
    with pytest.raises(ValueError, match="must be positive, got 0 and 5"):
        lrpe_frequencies(0, 5)
