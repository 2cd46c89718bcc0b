"""What is routed lies on a sphere, in enough digits; ill forms are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regard.ops.routing_form import RoutingForm, on_sphere


def test_paper_norms_to_the_root_of_the_width_and_compat_to_one() -> None:
    x = 5 * torch.randn(7, 12, dtype=torch.float64) + 3
    paper, compat = on_sphere(x, mode="paper"), on_sphere(x, mode="compat")
    torch.testing.assert_close(paper.norm(dim=-1), torch.full((7,), 12**0.5, dtype=torch.float64), rtol=1e-4, atol=0)
    torch.testing.assert_close(paper.mean(dim=-1), torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(compat * x.norm(dim=-1, keepdim=True), x)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_routes_in_at_least_float32(given: torch.dtype, wanted: torch.dtype) -> None:
    form = RoutingForm(window_size=3, causal=True, shared_qk=True)
    assert form.items(torch.randn(2, 4, dtype=given)).dtype == wanted
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert form.items(torch.randn(2, 4, dtype=given)).dtype == wanted


def test_own_key_is_a_last_resort_in_compat_with_shared_keys_alone() -> None:
    found = {
        (mode, shared): RoutingForm(window_size=3, causal=True, shared_qk=shared, mode=mode).avoids_own_key
        for mode in ("paper", "compat")
        for shared in (True, False)
    }
    assert [pair for pair, avoids in found.items() if avoids] == [("compat", True)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"window_size": 0}, r"window_size must be positive, got 0"),
        ({"mode": "official"}, r"mode must be one of paper, compat, got 'official'"),
    ],
)
def test_ill_forms_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutingForm(**{"window_size": 3, "causal": True, "shared_qk": True, **changed})
