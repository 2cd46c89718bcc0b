"""Lightning's claims: well-formed, the exact ones hold, and the forms that are raced compute the same."""

from __future__ import annotations

import pytest
import torch

from regard.claims import RegisteredClaim, claims_of
from regard.claims.lightning import cumsum_linear_attention, quadratic_in_strips
from regard.claims.runner import run_claim
from regard.ops.linear_attention import linear_attention_reference

CLAIMS = claims_of("lightning")


def by_name(claim: RegisteredClaim) -> str:
    return claim.claim.name


@pytest.mark.parametrize("registered", [each for each in CLAIMS if each.claim.grade == "exact"], ids=by_name)
def test_exact_claims_hold(registered: RegisteredClaim) -> None:
    result = run_claim(registered)
    assert result.verdict == "held", result.value


@pytest.mark.parametrize("registered", CLAIMS, ids=by_name)
def test_claims_are_well_formed(registered: RegisteredClaim) -> None:
    made = registered.claim
    assert registered.system == "lightning"
    assert made.statement
    assert made.criterion
    assert made.where
    assert (registered.measure is None) == (made.grade == "out of reach") == bool(made.reason)


def test_all_claims_are_there() -> None:
    assert {each.claim.name: each.claim.grade for each in CLAIMS} == {
        "block_equals_quadratic": "exact",
        "linear_cost": "exact",
        "constant_speed": "ratio",
        "faster_than_softmax": "ratio",
        "no_cumsum": "ratio",
        "constant_memory": "ratio",
        "large_language_models": "out of reach",
        "gpu_milliseconds": "out of reach",
    }


def test_what_is_raced_computes_the_same() -> None:
    q, k = torch.randn(2, 1, 3, 1031, 5).double()
    v = torch.randn(1, 3, 1031, 7).double()
    torch.testing.assert_close(cumsum_linear_attention(q, k, v), linear_attention_reference(q, k, v))
    strips = quadratic_in_strips(q[0, 1], k[0, 1], v[0, 1], 0.3)
    torch.testing.assert_close(strips, linear_attention_reference(q, k, v, slopes=(0.0, 0.3, 1.0))[0, 1])
