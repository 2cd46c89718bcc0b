"""Every registered mixer keeps the contract: each check that its traits call for."""

from __future__ import annotations

from typing import Any

import pytest

import regard
from regard.testing import Check, contract_checks
from regard.testing.export_process import export_failures

REGISTERED = [*regard.systems(kind="sequence"), *regard.systems(kind="feature")]
CHECKS = [(name, check) for name in REGISTERED for check in contract_checks(regard.get_class(name))]
COMPOSED = {"titans_mac", "titans_mag", "titans_mal"}
"""Made of `titans_lmm` and attention: tracing them takes as long as tracing half of the others together."""
TRACED_SLOWLY = {(name, "compile") for name in (*COMPOSED, "landmark", "recycled", "routing", "sea", "titans_lmm")}
EXPORTED = [name for name, check in CHECKS if check.name == "export"]
PROCESSES = 6
"""Processes in which mixers are exported: the start of one takes as long as the export of several mixers."""


def test_there_are_mixers_to_check() -> None:
    assert REGISTERED
    assert {name for name, _ in CHECKS} == set(REGISTERED)
    assert EXPORTED


def parametrised(name: str, check: Check) -> Any:
    marks = [pytest.mark.slow] * ((name, check.name) in TRACED_SLOWLY)
    return pytest.param(check, id=f"{name}-{check}", marks=marks)


@pytest.mark.parametrize("check", [parametrised(name, check) for name, check in CHECKS if check.name != "export"])
def test_contract(check: Check) -> None:
    check()


def check_exports(names: list[str]) -> None:
    found = export_failures([regard.get_class(name) for name in names])
    assert len(found) == len(names)
    assert {cls.__qualname__: failures for cls, failures in found.items() if failures} == {}


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[pytest.mark.slow] * (number % 2)) for number in range(PROCESSES)]
)
def test_all_forms_export(number: int) -> None:
    check_exports([name for name in EXPORTED if name not in COMPOSED][number::PROCESSES])


@pytest.mark.slow
def test_all_forms_of_composed_mixers_export() -> None:
    check_exports([name for name in EXPORTED if name in COMPOSED])
