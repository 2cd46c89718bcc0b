"""Running the command line inside the test's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from regard.cli import main


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def regard(capsys) -> Callable[..., Ran]:
    """Run `regard` with these arguments."""

    def run(*arguments: str) -> Ran:
        status = main(arguments)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture
def refused(regard) -> Callable[..., str]:
    """Run `regard`, which must refuse in one line with status 2; returns the line."""

    def run(*arguments: str) -> str:
        ran = regard(*arguments)
        assert ran.status == 2
        assert ran.out == ""
        assert ran.err.count("\n") == 1
        assert ran.err.endswith("\n")
        return ran.err.rstrip("\n")

    return run
