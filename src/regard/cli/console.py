"""The consoles that commands print on."""

from __future__ import annotations

import sys

from rich.console import Console

__all__ = ["Console", "output", "progress"]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let `main` decide: rich itself would end the process."""
        raise BrokenPipeError


def output() -> Console:
    """For results, on stdout; what is printed is text, never markup.

    Bound to the stdout of this moment: while a spinner runs, rich redirects `sys.stdout` to the spinner's console.
    """
    return _Console(file=sys.stdout, highlight=False, markup=False)


def progress() -> Console:
    """For progress, on stderr."""
    return _Console(file=sys.stderr, highlight=False, markup=False)
