"""Generated files are up to date: the README's tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_readme_tables_are_up_to_date() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_benchmark_runs_the_race_of_make_demo() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (demo,) = [line.removeprefix("DEMO := ") for line in makefile.splitlines() if line.startswith("DEMO := ")]
    assert f'DEMO = "{demo}"' in (ROOT / "benchmarks" / "compare.py").read_text(encoding="utf-8")
