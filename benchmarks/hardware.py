"""The accelerator model: the time of its full sweep, and how well roofs tell the time of two layers on this machine."""

from __future__ import annotations

from collections.abc import Iterator

from harness import Outcome, at_most

from regard.analysis.calibration import calibrate, compare_times
from regard.hardware.sweep import sweep_designs
from regard.hardware.workloads import all_workloads
from regard.measure import one_thread, race

MOST_SECONDS = 2.0
FACTOR = 2.0


def full_sweep() -> Outcome:
    """Closed forms, 720 times."""
    seconds = race({"sweep": lambda: sweep_designs(all_workloads())}, rounds=5).median_s["sweep"]
    return at_most(
        "hardware sweep",
        "24 workloads x 5 designs x 6 sizes of the arrays, seconds",
        seconds,
        MOST_SECONDS,
        unit=" s",
    )


def predicted_times(threads: str) -> Outcome:
    """The length at which the prediction is farthest off, either way."""
    machine = calibrate()
    layers = compare_times(machine)
    apart = {f"{each.mechanism} {each.tokens}": max(each.ratio, 1 / each.ratio) for each in layers}
    worst = max(apart, key=lambda name: apart[name])
    return at_most(
        f"hardware roofline {threads}",
        f"measured / predicted time of softmax and lightning at 1k to 16k tokens, farthest off either way, {threads}",
        apart[worst],
        FACTOR,
        detail=f"{worst}; " + ", ".join(f"{each.mechanism} {each.tokens}: {each.ratio:.2f}" for each in layers),
    )


def races() -> Iterator[Outcome]:
    yield full_sweep()
    with one_thread():
        yield predicted_times("1 thread")
