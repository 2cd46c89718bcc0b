"""RCMHA against RMHA in its plain form: peak memory of a training step, and time, which is reported."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Outcome, at_most

from regard.claims.rcmha import memory_race
from regard.measure import peak_bytes, race

SIZES = "128 wide, 8 heads, 512 tokens, 1 row, float32, forward and backward"


def memory() -> Outcome:
    torch.manual_seed(0)
    peaks = {name: min(peak_bytes(step, warmup=1) for _ in range(3)) for name, step in memory_race().items()}
    what = f"peak memory of RCMHA (tables of 512 positions) / RMHA in its plain form (8,192 rows), {SIZES}"
    shown = ", ".join(f"{name}: {peak / 2**20:.0f} MiB" for name, peak in peaks.items())
    return at_most("rcmha memory 512", what, peaks["RCMHA"] / peaks["plain RMHA"], 0.85, detail=shown)


def time() -> Outcome:
    """Reported, without a target."""
    torch.manual_seed(0)
    times = race(memory_race())
    ratio = times.ratio("RCMHA", "plain RMHA")
    shown = ", ".join(f"{name}: {1e3 * seconds:.1f} ms" for name, seconds in times.median_s.items())
    return Outcome(
        name="rcmha time 512",
        what=f"time of RCMHA / RMHA in its plain form, {SIZES}",
        value=ratio,
        measured=f"{ratio:.2f}x",
        target="reported",
        met=True,
        detail=shown,
    )


def races() -> Iterator[Outcome]:
    yield memory()
    yield time()
