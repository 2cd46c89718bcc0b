"""Shapes are what the annotations say: in every op, layer and mixer that the mechanisms use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import regard


def test_annotations_hold_in_every_mechanism() -> None:
    script = Path(__file__).with_name("typed_run.py")
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = re.fullmatch(r"(\d+) calls agree with their annotations\n", ran.stdout)
    assert found is not None, ran.stdout
    assert int(found[1]) > 3 * len(regard.systems("sequence"))
