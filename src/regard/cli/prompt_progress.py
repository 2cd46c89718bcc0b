"""How far the reading of a prompt is: a bar on a terminal, and a line now and then where stderr is a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

EVERY_S = 10.0
"""Seconds from one line of a log to the next, at least."""


class TimeLeft:
    """An estimate for work whose steps grow with what was done before, as attention to all earlier tokens does.

    Times are fitted by a n + b n^2, neither of them negative, from what has been done so far.

    Args:
        total: tokens.
    """

    def __init__(self, total: int) -> None:
        self.done, self._total = 0, total
        # sums of products of what a piece adds to n, to n^2, and to the time
        self._nn = self._nm = self._mm = self._nt = self._mt = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """A piece that took so long."""
        after = self.done + tokens
        n, m = tokens / self._total, (after**2 - self.done**2) / self._total**2
        self._nn, self._nm, self._mm = self._nn + n * n, self._nm + n * m, self._mm + m * m
        self._nt, self._mt = self._nt + n * seconds, self._mt + m * seconds
        self.done = after

    def seconds(self) -> float | None:
        """How long the rest will take; None before the first piece."""
        if self.done == 0:
            return None
        share = self.done / self._total
        linear, square = self._fit()
        return linear * (1 - share) + square * (1 - share**2)

    def _fit(self) -> tuple[float, float]:
        determinant = self._nn * self._mm - self._nm**2
        if determinant > 1e-9 * self._nn * self._mm:
            linear = (self._nt * self._mm - self._mt * self._nm) / determinant
            square = (self._mt * self._nn - self._nt * self._nm) / determinant
            if linear >= 0 and square >= 0:
                return linear, square
            if linear < 0:
                return 0.0, self._mt / self._mm
        return self._nt / self._nn, 0.0


def seconds_in_words(seconds: float) -> str:
    """A duration as people say it: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


@contextmanager
def prompt_progress(total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """Show the reading of a prompt; what is handed out is told how many tokens each piece had.

    Args:
        total: tokens of the prompt.
        console: where to; a bar if it is a terminal.
    """
    left, begin = TimeLeft(total), time.monotonic()

    def measured(tokens: int) -> str:
        nonlocal begin
        now = time.monotonic()
        left.add(tokens, now - begin)
        begin = now
        rest = left.seconds()
        return "" if rest is None else f"about {seconds_in_words(rest)} left"

    if not console.is_terminal:
        yield _lines(total, console, left, measured)
        return
    columns = (TextColumn("reading the prompt"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda tokens: bar.update(task, advance=tokens, description=measured(tokens))


def _lines(total: int, console: Console, left: TimeLeft, measured: Callable[[int], str]) -> Callable[[int], None]:
    told = time.monotonic()

    def tell(tokens: int) -> None:
        nonlocal told
        rest, now = measured(tokens), time.monotonic()
        if now - told >= EVERY_S and left.done < total:
            told = now
            console.print(f"reading the prompt: {left.done:,} of {total:,} tokens, {rest}", soft_wrap=True)

    return tell
