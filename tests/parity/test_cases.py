"""Our code agrees with the authors' on every stored case: outputs and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest

from regard.parity.cases import find_cases
from regard.parity.runner import run_file

STORED = Path(__file__).with_name("cases")
CASES = find_cases(STORED)


def test_there_are_stored_cases() -> None:
    assert len(CASES) >= 15


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_our_code_agrees_with_the_authors(path: Path) -> None:
    result = run_file(path)
    assert result.passed, "\n".join(result.problems)
