"""What a race shows while it runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESH_PER_S = 3
STAGES = {
    "start": "starting",
    "size": "counting parameters",
    "train": "training",
    "evaluate": "evaluating",
    "map": "attention map",
    "ready": "waiting to be timed",
    "speed": "timing training steps",
    "cost": "timing the mechanism",
    "decode": "timing decoding",
}
_SHARE_BEFORE = {"start": 0.0, "size": 0.02, "train": 0.04, "evaluate": 0.55, "map": 0.62, "ready": 0.64}
_SHARE_BEFORE |= {"speed": 0.65, "cost": 0.72, "decode": 0.9}


@dataclass
class _Line:
    stage: str = "start"
    seed: int = 0
    step: int = 0
    loss: float | None = None

    def share(self, steps: int, seeds: int) -> float:
        """How much of its race a mechanism has behind it, roughly."""
        if self.stage not in ("train", "evaluate"):
            return _SHARE_BEFORE[self.stage]
        span = _SHARE_BEFORE["evaluate"] - _SHARE_BEFORE["train"]
        within = 1.0 if self.stage == "evaluate" else self.step / steps
        return _SHARE_BEFORE["train"] + span * (self.seed + within) / seeds


class Progress:
    """Follows the mechanisms of a race.

    Args:
        console: where it is shown.
        names: all mechanisms of the race.
        finished: how many of them need nothing any more.
        steps: training steps per seed.
        seeds: training runs per mechanism.
    """

    def __init__(self, console: Console, names: Sequence[str], *, finished: int, steps: int, seeds: int) -> None:
        self._console = console
        self._names = list(names)
        self._finished = finished
        self._steps = steps
        self._seeds = seeds
        self._lines: dict[str, _Line] = {}
        self._begin = time.monotonic()
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(self, console=console, refresh_per_second=REFRESH_PER_S, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def stage(self, name: str, stage: str, seed: int = 0) -> None:
        """A mechanism has come to a stage."""
        self._lines[name] = _Line(stage, seed)
        if self._live is None and stage != "size":
            self._say(f"{name}: {self._in_words(self._lines[name])}")

    def step(self, name: str, *, seed: int, step: int, loss: float, **_: Any) -> None:
        """A mechanism has trained a step."""
        self._lines[name] = _Line("train", seed, step, loss)

    def end(self, name: str, verdict: str) -> None:
        """A mechanism has gone through its race, or failed."""
        self._lines.pop(name, None)
        self._finished += 1
        self._say(f"{name}: {verdict}")

    def _say(self, line: str) -> None:
        passed = time.monotonic() - self._begin
        self._console.print(f"[{passed:5.0f} s] {line}", soft_wrap=True)

    def _in_words(self, line: _Line) -> str:
        words = STAGES[line.stage]
        if line.stage in ("train", "evaluate") and self._seeds > 1:
            words += f", seed {line.seed + 1} of {self._seeds}"
        return words

    def __rich__(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        for name, line in sorted(self._lines.items()):
            share = line.share(self._steps, self._seeds)
            grid.add_row(Text(name), ProgressBar(total=1.0, completed=share, width=20), Text(self._details(line)))
        done = self._finished + sum(line.share(self._steps, self._seeds) for line in self._lines.values())
        passed = time.monotonic() - self._begin
        summary = f"{self._finished} of {len(self._names)} done, {passed:.0f} s"
        grid.add_row(
            Text("all", style="bold"), ProgressBar(total=len(self._names), completed=done, width=20), Text(summary)
        )
        return grid

    def _details(self, line: _Line) -> str:
        words = self._in_words(line)
        if line.loss is not None:
            words += f", step {line.step} of {self._steps}, loss {line.loss:.3f}"
        return words
