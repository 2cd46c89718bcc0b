"""How far two forms are apart."""

from __future__ import annotations

import pytest
import torch

from regard.claims._operators import worst_error


def test_worst_error_sees_single_entries_and_nan() -> None:
    expected = torch.tensor([1.0, -1.0, 1e-9, 100.0])
    assert worst_error(expected, expected) == 0
    typical = float(expected.square().mean().sqrt())
    assert worst_error(expected + torch.tensor([0.0, 0.0, 1.0, 0.0]), expected) == pytest.approx(1 / typical)
    assert worst_error(expected * torch.tensor([1.0, 1.0, 1.0, 1.5]), expected) == pytest.approx(0.5)
    assert worst_error(expected * torch.nan, expected) == float("inf")
