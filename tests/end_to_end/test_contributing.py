"""The mechanism that CONTRIBUTING.md shows passes the checks and races, with nothing else written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The page's own code block, as a file."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^ +```python\n(.*?)^ +```$", page, re.DOTALL | re.MULTILINE)
    path = tmp_path / "running_mean.py"
    path.write_text(textwrap.dedent(block), encoding="utf-8")
    return path


def run(*arguments: str, folder: Path) -> str:
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_it_keeps_the_contract(written: Path) -> None:
    code = "import running_mean; from regard.testing import check_mixer; print(check_mixer(running_mean.RunningMean))"
    assert "RunningMean: " in run("-c", code, folder=written.parent)


@pytest.mark.slow
def test_it_races(written: Path) -> None:
    options = ["--mechanisms", "running_mean", "--steps", "3", "--lengths", "32,64", "--dim", "24", "--heads", "3"]
    command = ["-m", "regard", "compare", "text", "--import", str(written), *options, "--out", "race"]
    run(*command, folder=written.parent)
    results = json.loads((written.parent / "race" / "results.json").read_text(encoding="utf-8"))
    assert [(row["name"], row["status"]) for row in results["rows"]] == [("running_mean", "ok")]
    assert results["rows"][0]["decode_why"] == "no state yet"
