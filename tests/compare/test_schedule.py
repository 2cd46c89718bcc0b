"""In which order a race trains and times its mechanisms."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from regard.compare import plan, race
from regard.compare.race import MEMORY_FLOOR_BYTES, MOST_WAITING, Race
from regard.measure import MeasurementError


class Diary(Race):
    """A race whose mechanisms train in no time, and which notes what it does."""

    def __init__(self, jobs: int) -> None:
        self.settings = SimpleNamespace(jobs=jobs)
        self._children = []
        self.diary: list[str] = []

    def _start(self, name: str) -> SimpleNamespace:
        child = SimpleNamespace(name=name, ready=True, waiting=True, gone=False)

        def permit() -> None:
            self.diary.append(f"time {name}")
            child.gone = True

        child.permit = permit
        self._children.append(child)
        self.diary.append(f"train {name}")
        return child

    def _wait_until(self, finished) -> None:
        assert finished()

    def go(self, names: str) -> list[str]:
        left = list(names)
        while left:
            self._train(left)
            self._time_those_that_wait()
        return self.diary


def test_all_train_before_any_is_timed(monkeypatch) -> None:
    monkeypatch.setattr(race, "available_memory_bytes", lambda: MEMORY_FLOOR_BYTES)
    assert Diary(1).go("abc") == ["train a", "train b", "train c", "time a", "time b", "time c"]


def test_where_memory_is_short_those_who_wait_are_timed_first(monkeypatch) -> None:
    free = iter([MEMORY_FLOOR_BYTES, MEMORY_FLOOR_BYTES - 1])
    monkeypatch.setattr(race, "available_memory_bytes", lambda: next(free))
    assert Diary(2).go("abc") == ["train a", "train b", "time a", "time b", "train c", "time c"]


def test_where_free_memory_is_unknown_no_more_wait_than_train(monkeypatch) -> None:
    def unknown() -> int:
        raise MeasurementError("cannot tell")

    monkeypatch.setattr(race, "available_memory_bytes", unknown)
    assert Diary(2).go("abc") == ["train a", "train b", "time a", "time b", "train c", "time c"]


def test_only_so_many_wait(monkeypatch) -> None:
    monkeypatch.setattr(race, "available_memory_bytes", lambda: 2**50)
    diary = Diary(1).go("x" * (MOST_WAITING + 1))
    assert diary.index("time x") == MOST_WAITING


def test_the_plan_fills_both_jobs_and_adds_the_timing() -> None:
    rows = [
        plan.Planned(name, None, train_s=train_s, measure_s=6.0)
        for name, train_s in zip("abc", (97, 27, 57), strict=True)
    ]
    assert plan.minutes(rows, SimpleNamespace(jobs=2)) == pytest.approx((100 + 18) / 60)
    assert plan.minutes(rows, SimpleNamespace(jobs=1)) == pytest.approx((190 + 18) / 60)
