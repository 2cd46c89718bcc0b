"""Every registered mixer keeps the contract: each check that its traits call for."""

from __future__ import annotations

import pytest

import regard
from regard.testing import Check, contract_checks

REGISTERED = [*regard.systems(kind="sequence"), *regard.systems(kind="feature")]
CHECKS = [(name, check) for name in REGISTERED for check in contract_checks(regard.get_class(name))]


def test_there_are_mixers_to_check() -> None:
    assert REGISTERED
    assert {name for name, _ in CHECKS} == set(REGISTERED)


@pytest.mark.parametrize("check", [pytest.param(check, id=f"{name}-{check}") for name, check in CHECKS])
def test_contract(check: Check) -> None:
    check()
