"""Rotary embedding against complex multiplication."""

from __future__ import annotations

import pytest
import torch

from regard.ops.rotary import check_rotary, rotate


def test_turns_pairs_like_complex_numbers() -> None:
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16, 17]])
    turned = rotate(x, positions, base=100.0)
    for pair in range(5):
        angle = positions[:, None, :].double() * 100.0 ** (-2 * pair / 10)
        expected = torch.complex(x[..., pair], x[..., pair + 5]) * torch.polar(torch.ones_like(angle), angle)
        torch.testing.assert_close(turned[..., pair], expected.real)
        torch.testing.assert_close(turned[..., pair + 5], expected.imag)


def test_keeps_lengths_and_dtype() -> None:
    x = torch.randn(1, 2, 5, 6).bfloat16()
    turned = rotate(x, torch.arange(5)[None], base=10000.0)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float().norm(dim=-1), x.float().norm(dim=-1), rtol=0.02, atol=0.02)


def test_autocast_does_not_narrow_the_angles() -> None:
    x, far = torch.randn(1, 1, 1, 8), torch.tensor([[99_991]])
    plain = rotate(x, far, base=10000.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(rotate(x, far, base=10000.0), plain)


@pytest.mark.parametrize(("head_dim", "base", "message"), [(7, 10.0, "even head_dim, got 7"), (8, 1.0, "got 1.0")])
def test_refuses_what_cannot_turn(head_dim: int, base: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rotary(head_dim, base)
