"""Hedgehog's claims: well-formed, and the exact ones hold."""

from __future__ import annotations

import pytest
import torch

from regard.claims import RegisteredClaim, claims_of
from regard.claims._operators import worst_error
from regard.claims.runner import run_claim

CLAIMS = claims_of("hedgehog")


def by_name(claim: RegisteredClaim) -> str:
    return claim.claim.name


@pytest.mark.parametrize("registered", [each for each in CLAIMS if each.claim.grade == "exact"], ids=by_name)
def test_exact_claims_hold(registered: RegisteredClaim) -> None:
    result = run_claim(registered)
    assert result.verdict == "held", result.value


@pytest.mark.parametrize("registered", CLAIMS, ids=by_name)
def test_claims_are_well_formed(registered: RegisteredClaim) -> None:
    made = registered.claim
    assert registered.system == "hedgehog"
    assert made.statement
    assert made.criterion
    assert made.where
    assert (registered.measure is None) == (made.grade == "out of reach") == bool(made.reason)


def test_all_claims_are_there() -> None:
    assert {each.claim.name: each.claim.grade for each in CLAIMS} == {
        "linear_equals_quadratic": "exact",
        "added_parameters": "exact",
        "constant_state": "exact",
        "faster_than_softmax": "ratio",
        "llama_2": "out of reach",
        "gpt_2": "out of reach",
        "glue": "out of reach",
    }


def test_worst_error_sees_single_entries_and_nan() -> None:
    expected = torch.tensor([1.0, -1.0, 1e-9, 100.0])
    assert worst_error(expected, expected) == 0
    typical = float(expected.square().mean().sqrt())
    assert worst_error(expected + torch.tensor([0.0, 0.0, 1.0, 0.0]), expected) == pytest.approx(1 / typical)
    assert worst_error(expected * torch.tensor([1.0, 1.0, 1.0, 1.5]), expected) == pytest.approx(0.5)
    assert worst_error(expected * torch.nan, expected) == float("inf")
