"""Every registered mixer keeps the contract: each check that its traits call for."""

from __future__ import annotations

import pytest

import regard
from regard.testing import Check, contract_checks
from regard.testing.export_process import export_failures

REGISTERED = [*regard.systems(kind="sequence"), *regard.systems(kind="feature")]
CHECKS = [(name, check) for name in REGISTERED for check in contract_checks(regard.get_class(name))]
EXPORTED = [name for name, check in CHECKS if check.name == "export"]
TOGETHER = 6
"""Mixers that are exported in one process, whose start takes as long as several of them."""


def test_there_are_mixers_to_check() -> None:
    assert REGISTERED
    assert {name for name, _ in CHECKS} == set(REGISTERED)
    assert EXPORTED


@pytest.mark.parametrize(
    "check", [pytest.param(check, id=f"{name}-{check}") for name, check in CHECKS if check.name != "export"]
)
def test_contract(check: Check) -> None:
    check()


@pytest.mark.parametrize("first", range(0, len(EXPORTED), TOGETHER))
def test_all_forms_export(first: int) -> None:
    names = EXPORTED[first : first + TOGETHER]
    found = export_failures([regard.get_class(name) for name in names])
    assert [cls.__qualname__ for cls in found] == [regard.get_class(name).__qualname__ for name in names]
    assert {cls.__qualname__: failures for cls, failures in found.items() if failures} == {}
