"""What `regard compare` itself costs: the share of a whole race in which nothing is trained or measured."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import Outcome, at_most

DEMO = "compare text --mechanisms all --steps 150 --lengths 256,1024,4096"
"""As in the Makefile."""


def overhead() -> Outcome:
    """Runs the race of `make demo` and reads from its results how long it took, and how long it worked."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "race"
        command = [sys.executable, "-m", "regard", *DEMO.split(), "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        timing = json.loads((out / "results.json").read_text(encoding="utf-8"))["timing"]
    share = 100 * (1 - timing["work_s"] / timing["total_s"])
    what = "share of the race of `make demo` spent on starting, reading data and writing the report"
    detail = f"{timing['total_s']:.0f} s in all, {timing['work_s']:.0f} s training and measuring"
    return at_most("compare overhead", what, share, 10, unit=" %", detail=detail)


def races() -> Iterator[Outcome]:
    yield overhead()
