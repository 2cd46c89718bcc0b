"""The time that is left, and how it is told: on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from regard.cli import prompt_progress as module
from regard.cli.prompt_progress import TimeLeft, prompt_progress, seconds_in_words


@pytest.mark.parametrize(("linear", "square"), [(3.0, 5.0), (7.0, 0.0), (0.0, 11.0)])
def test_growing_times_are_foreseen(linear: float, square: float) -> None:
    left, total = TimeLeft(1000), 1000
    assert left.seconds() is None
    for begin, end in ((0, 128), (128, 256), (256, 300)):
        spent = linear * (end - begin) / total + square * (end**2 - begin**2) / total**2
        left.add(end - begin, spent)
    assert left.done == 300
    assert left.seconds() == pytest.approx(linear * 0.7 + square * (1 - 0.3**2))


def test_one_piece_is_enough_and_nothing_is_negative() -> None:
    left = TimeLeft(100)
    left.add(25, 2.0)
    assert left.seconds() == pytest.approx(6.0)
    # ever faster: no square below 0
    left.add(25, 1.0)
    assert left.seconds() == pytest.approx(3.0)
    # a first piece that took no time: no linear part below 0
    left = TimeLeft(100)
    left.add(10, 0.0)
    left.add(10, 3.0)
    assert left.seconds() == pytest.approx(90 * (1 - 0.2**2))
    left.add(80, 1.0)
    assert left.seconds() == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert seconds_in_words(seconds) == words


class Clock:
    """Moves on by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_a_log_gets_a_line_now_and_then(clock: Clock) -> None:
    written = io.StringIO()
    with prompt_progress(131072, Console(file=written, width=40)) as on_tokens:
        for _ in range(32):
            clock.now += 4
            on_tokens(4096)
    lines = written.getvalue().splitlines()
    assert lines[0] == "reading the prompt: 12,288 of 131,072 tokens, about 1 min 56 s left"
    assert lines[-1] == "reading the prompt: 122,880 of 131,072 tokens, about 8 s left"
    assert len(lines) == 10


def test_a_short_prompt_leaves_no_line_in_a_log(clock: Clock) -> None:
    written = io.StringIO()
    with prompt_progress(100, Console(file=written)) as on_tokens:
        clock.now += 60
        on_tokens(100)
    assert written.getvalue() == ""


def test_a_terminal_gets_a_bar_with_the_time_left(clock: Clock) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, legacy_windows=False)
    with prompt_progress(1000, console) as on_tokens:
        clock.now += 30
        on_tokens(250)
    shown = written.getvalue()
    assert "reading the prompt" in shown
    assert "250/1000" in shown
    assert "about 1 min 30 s left" in shown
