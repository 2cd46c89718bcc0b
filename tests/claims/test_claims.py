"""All claims are well-formed, all are there, and the exact ones hold."""

from __future__ import annotations

from typing import Any

import pytest

from regard.claims import RegisteredClaim, claims_of, known_systems
from regard.claims.runner import run_claim

CLAIMS = [registered for system in known_systems() for registered in claims_of(system)]
GRADES = {
    "aaren": {"exact": 4, "ratio": 3, "scaled": 4, "out of reach": 1},
    "agent": {"exact": 3, "ratio": 2, "scaled": 2, "out of reach": 4},
    "braintumor": {"exact": 5, "scaled": 3, "out of reach": 1},
    "biformer": {"exact": 5, "ratio": 2, "scaled": 2, "out of reach": 2},
    "davit": {"exact": 3, "ratio": 1, "scaled": 2, "out of reach": 3},
    "dependencyvit": {"exact": 3, "ratio": 2, "scaled": 4, "out of reach": 3},
    "eca": {"exact": 3, "ratio": 2, "scaled": 2, "out of reach": 2},
    "efficientvit": {"exact": 2, "ratio": 3, "scaled": 1, "out of reach": 2},
    "fusemax": {"exact": 7, "ratio": 1, "out of reach": 1},
    "halonet": {"exact": 5, "ratio": 2, "scaled": 2, "out of reach": 3},
    "hedgehog": {"exact": 3, "ratio": 1, "scaled": 3, "out of reach": 3},
    "hip": {"exact": 2, "ratio": 2, "scaled": 3, "out of reach": 2},
    "landmark": {"exact": 3, "ratio": 1, "scaled": 2, "out of reach": 2},
    "lightning": {"exact": 2, "ratio": 4, "scaled": 2, "out of reach": 2},
    "maxvit": {"exact": 4, "ratio": 1, "scaled": 3, "out of reach": 4},
    "medusa": {"exact": 2, "scaled": 2, "out of reach": 3},
    "meningioma": {"exact": 2, "ratio": 1, "scaled": 3, "out of reach": 1},
    "ninformer": {"exact": 3, "ratio": 1, "scaled": 2, "out of reach": 1},
    "palm": {"exact": 2, "scaled": 7, "out of reach": 2},
    "rcmha": {"exact": 1, "ratio": 1, "scaled": 1, "out of reach": 1},
    "recycled": {"exact": 2, "ratio": 1, "scaled": 4, "out of reach": 1},
    "routing": {"exact": 2, "ratio": 1, "scaled": 2, "out of reach": 3},
    "sea": {"exact": 4, "ratio": 2, "scaled": 3, "out of reach": 1},
    "shvit": {"exact": 3, "ratio": 2, "scaled": 1, "out of reach": 3},
    "softplus": {"exact": 5, "ratio": 2, "scaled": 6, "out of reach": 1},
    "titans": {"exact": 4, "ratio": 3, "scaled": 7, "out of reach": 3},
    "transnormer": {"exact": 4, "ratio": 3, "scaled": 4, "out of reach": 2},
    "urpe": {"exact": 2, "scaled": 2, "out of reach": 2},
    "var": {"exact": 2, "ratio": 1, "scaled": 2, "out of reach": 1},
}


LONG = {"palm-sensitivity_bound", "agent-parameters_and_macs", "maxvit-parameters", "meningioma-concepts"}
"""Exact claims that train networks, or count what the tests of the networks count as well."""


def by_name(registered: RegisteredClaim) -> str:
    return f"{registered.system}-{registered.claim.name}"


def exact_claims() -> list[Any]:
    exact = [each for each in CLAIMS if each.claim.grade == "exact"]
    assert {by_name(each) for each in exact} >= LONG
    return [pytest.param(each, id=by_name(each), marks=[pytest.mark.slow] * (by_name(each) in LONG)) for each in exact]


@pytest.mark.parametrize("registered", exact_claims())
def test_exact_claims_hold(registered: RegisteredClaim) -> None:
    result = run_claim(registered)
    assert result.verdict == "held", result.value


@pytest.mark.parametrize("registered", CLAIMS, ids=by_name)
def test_claims_are_well_formed(registered: RegisteredClaim) -> None:
    made = registered.claim
    assert made.statement
    assert made.criterion
    assert made.where
    assert (registered.measure is None) == (made.grade == "out of reach") == bool(made.reason)


@pytest.mark.parametrize("system", GRADES)
def test_no_claim_is_missing(system: str) -> None:
    grades = [registered.claim.grade for registered in claims_of(system)]
    assert {grade: grades.count(grade) for grade in GRADES[system]} == GRADES[system]
    assert len(grades) == sum(GRADES[system].values())
