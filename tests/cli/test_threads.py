"""The wait of a command's threads: shortened before PyTorch is there, and only where the user has not chosen one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from regard.cli.threads import SPINS, wait_briefly


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_the_users_choice_stands(before: dict[str, str], after: dict[str, str]) -> None:
    wait_briefly(before)
    assert before == after


def test_the_command_line_sets_it_before_pytorch_is_imported() -> None:
    script = (
        "import os, sys; import regard.cli.program as program; program.main(['list', '--json', os.devnull]); "
        "print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    )
    environ = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=True)
    assert ran.stdout.splitlines()[-1] == f"False {SPINS}"
