"""How far a network is with the windows of each volume: a bar on a terminal, a spinner for tasks that do not tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from regard.tasks.task import Task


@contextmanager
def watching(task: Task, what: str) -> Iterator[None]:
    """Show how far a task is; nothing stays on the terminal.

    Args:
        task: tells its steps to `watch`, if it does.
        what: is being done.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    from regard.cli.console import progress

    console = progress()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        general = shown.add_task(what, total=None)
        bars: dict[str, TaskID] = {}

        def watch(name: str, done: int, total: int) -> None:
            if name not in bars:
                for bar in bars.values():
                    shown.update(bar, visible=False)
                shown.update(general, visible=False)
                bars[name] = shown.add_task(name, total=total)
            shown.advance(bars[name], done)

        task.watch = watch
        try:
            yield
        finally:
            task.watch = None
