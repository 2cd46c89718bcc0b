"""The race itself: one child per mechanism, training side by side, timing one by one, results written as they come.

Whoever has trained waits in memory for all to have trained, so that no core is idle meanwhile, and is timed then, alone
on the machine. Where memory is short, those who wait are timed earlier.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from regard.compare.children import Child, Event, Events, stop_all
from regard.compare.data import read_data
from regard.compare.folder import RunFolder, writing
from regard.compare.job import Job, Part, read_description
from regard.compare.progress import Progress
from regard.compare.race_tasks import METRICS
from regard.compare.results import assemble, machine, row_of
from regard.compare.settings import Settings, threads_per_job
from regard.errors import UserError
from regard.measure import MeasurementError, available_memory_bytes
from regard.wording import bytes_in_words, shown

POLL_S = 0.2
MEMORY_FLOOR_BYTES = 768 * 2**20
"""Free memory that each mechanism that trains must find: Python, torch and a small network."""
MOST_WAITING = 32
"""Mechanisms that may wait for their timing; a descriptor and a thread of the race belong to each."""


class Interrupted(Exception):
    """The user pressed Ctrl-C; all results so far are written."""


def require_memory(settings: Settings, *, jobs_given: bool) -> Settings:
    """Refuse a race for which there is no memory; where the user left the number of jobs open, lower it first.

    Raises:
        UserError: less than the floor is free.
    """
    try:
        free = available_memory_bytes()
    except MeasurementError:
        # a system that cannot tell: the race must try
        return settings
    jobs = min(settings.jobs, len(settings.mechanisms))
    if not jobs_given:
        jobs = max(1, min(jobs, free // MEMORY_FLOOR_BYTES))
    needed = jobs * MEMORY_FLOOR_BYTES
    if free < needed:
        raise UserError(
            f"only {bytes_in_words(free)} of memory are free, and {jobs} at a time need {bytes_in_words(needed)}"
            + (": free some, or try --jobs 1" if jobs > 1 else ": free some first")
        )
    return replace(settings, jobs=jobs)


def prepare_data(settings: Settings, folder: RunFolder) -> dict[str, Any]:
    """Read the data once and put them where the children read them; an earlier race's are used again.

    Raises:
        UserError: the data are bad, or the disk is full.
    """
    described = read_description(folder.work)
    if described is not None:
        return described
    data = read_data(settings)
    with writing(folder.path):
        return data.store(folder.work)


class Race:
    """Runs a race in its folder.

    Args:
        settings: of the race.
        folder: where it is written.
        described: the prepared data's description.
        console: where progress is shown.
        created: when the race was first started; now where it is new.
        begin: when this command was started, on the monotonic clock.
    """

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        described: dict[str, Any],
        *,
        console: Console,
        created: str | None = None,
        begin: float | None = None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.described = described
        self.parts = folder.parts(settings)
        self.created = created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._begin = time.monotonic() if begin is None else begin
        self._machine = machine(settings.device)
        self._events: Events = queue.Queue()
        self._children: list[Child] = []
        self._interrupted = False
        self._worked_s = 0.0
        self._looked_s = time.monotonic()
        pending = self._pending()
        self._progress = Progress(
            console,
            settings.mechanisms,
            finished=len(settings.mechanisms) - len(pending),
            steps=settings.steps,
            seeds=settings.seeds,
        )

    def _pending(self) -> list[str]:
        """The mechanisms that still have something to do; a failure that may have been chance is tried again."""
        return [
            name
            for name, part in self.parts.items()
            if not part.done(self.settings) and not (part.failed is not None and part.final)
        ]

    def run(self) -> dict[str, Any]:
        """Race until all rows are finished; returns the results.

        Raises:
            Interrupted: Ctrl-C; children are stopped, and the results so far and their report are written.
            UserError: the disk is full; what was written before is kept.
        """
        pending = self._pending()
        self._forget_failures(pending)
        self.write()
        with self._noticing_interrupts():
            try:
                with self._progress:
                    while pending:
                        self._train(pending)
                        self._time_those_that_wait()
            except Interrupted:
                self._finish()
                raise
            finally:
                stop_all(self._children)
            return self._finish()

    def _forget_failures(self, names: list[str]) -> None:
        for name in names:
            if self.parts[name].failed is not None:
                self.parts[name].failed = None
                with writing(self.folder.path):
                    self.parts[name].write()

    def write(self) -> dict[str, Any]:
        """Write the results so far, and return them."""
        results = assemble(
            self.settings,
            self.parts,
            self.described,
            created=self.created,
            finished=all(part.done(self.settings) or part.failed is not None for part in self.parts.values()),
            on_machine=self._machine,
        )
        total_s = time.monotonic() - self._begin
        results["timing"] = {"total_s": round(total_s, 1), "work_s": round(self._worked_s, 1)}
        self.folder.write_results(results)
        return results

    def _finish(self) -> dict[str, Any]:
        stop_all(self._children)
        for child in self._children:
            self._reload(child.name)
        results = self.write()
        self.folder.write_report(results)
        results = self.write()
        if not self._pending():
            self.folder.clear_work()
        return results

    # -- as many train together as there are jobs, then each is timed alone

    def _train(self, names: list[str]) -> None:
        """Start one after the other, taken off `names`, until none is left or memory is short; wait for all."""
        while names and self._one_more_fits():
            self._start(names.pop(0))
            self._wait_until(lambda: self._training() < self.settings.jobs)
        self._wait_until(lambda: self._training() == 0)

    def _training(self) -> int:
        return sum(not child.ready and not child.gone for child in self._children)

    def _one_more_fits(self) -> bool:
        waiting = sum(child.waiting and not child.gone for child in self._children)
        if waiting == 0:
            return True
        try:
            free = available_memory_bytes()
        except MeasurementError:
            # a system that cannot tell: no more wait than are trained at a time
            return waiting < self.settings.jobs
        return waiting < MOST_WAITING and free >= MEMORY_FLOOR_BYTES

    def _time_those_that_wait(self) -> None:
        for child in self._children:
            if not child.gone:
                child.waiting = False
                child.permit()
                self._wait_until(lambda child=child: child.gone)  # type: ignore[misc]

    def _start(self, name: str) -> Child:
        with writing(self.folder.path):
            job = Job(
                name=name,
                settings=self.settings,
                data=str(self.folder.work.absolute()),
                folder=str(self.folder.child(self.settings, name).absolute()),
                threads=threads_per_job(self.settings),
            )
            child = Child(job, self._events)
        self._children.append(child)
        self._progress.stage(name, "start")
        return child

    def _wait_until(self, finished: Callable[[], bool]) -> None:
        while not finished():
            if self._interrupted:
                raise Interrupted
            try:
                child, event = self._events.get(timeout=POLL_S)
            except queue.Empty:
                self._count_time()
                continue
            self._count_time()
            self._handle(child, event)

    def _count_time(self) -> None:
        """Add to the time in which something was being trained or measured, and enforce the limit."""
        now = time.monotonic()
        passed, self._looked_s = now - self._looked_s, now
        active = [child for child in self._children if not child.waiting and not child.gone]
        self._worked_s += passed if any(child.working for child in active) else 0.0
        limit = self.settings.time_limit_s
        for child in active:
            child.active_s += passed
            if limit is not None and child.active_s > limit and child.ended is None:
                child.ended = {"event": "failed", "why": f"took longer than {limit / 60:g} minutes", "final": False}
                child.kill()

    def _handle(self, child: Child, event: Event) -> None:
        match event.pop("event"):
            case "stage":
                child.working = True
                self._progress.stage(child.name, **event)
            case "step":
                self._progress.step(child.name, **event)
            case "saved":
                self._reload(child.name)
                self.write()
            case "ready":
                child.ready = child.waiting = True
                self._progress.stage(child.name, "ready")
            case "cannot_write":
                raise UserError(f"cannot write in {shown(self.folder.path)}: {event['why']}; results so far are kept")
            case "exit":
                self._end(child)
            case ended:
                child.ended = child.ended or {"event": ended, **event}

    def _end(self, child: Child) -> None:
        child.gone = True
        part = self._reload(child.name)
        ended = child.ended or {"event": "failed", "why": child.why_it_died(), "final": False}
        if ended["event"] == "failed":
            part.failed, part.final = ended["why"], ended["final"]
            with writing(self.folder.path):
                part.write()
        self.write()
        self._progress.end(child.name, _verdict(row_of(child.name, part, self.settings)))

    def _reload(self, name: str) -> Part:
        self.parts[name] = Part.read(self.folder.child(self.settings, name))
        return self.parts[name]

    @contextmanager
    def _noticing_interrupts(self) -> Iterator[None]:
        """Ctrl-C only sets a flag, so that it never strikes between starting a child and knowing of it."""

        def notice(number: int, frame: FrameType | None) -> None:
            self._interrupted = True

        if threading.current_thread() is not threading.main_thread():
            # signals arrive in the main thread alone
            yield
            return
        before = signal.signal(signal.SIGINT, notice)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _verdict(row: dict[str, Any]) -> str:
    """One mechanism's outcome in a line."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['why']}"
    quality = row["quality"]
    metric = METRICS[quality["metric"]]
    return f"{metric.figure(quality['mean'])} {metric.unit}"


def stamp() -> str:
    """Date and time for a folder's name."""
    return datetime.now().strftime("%Y-%m-%d-%H%M%S")


def paths_of(folder: Path) -> list[Path]:
    """What a race leaves for people: the page, the table, the results and the plots."""
    wanted = [folder / name for name in ("report.html", "results.csv", "results.json")]
    return [path for path in [*wanted, *sorted(folder.glob("*.png"))] if path.is_file()]
