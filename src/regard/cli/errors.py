"""Turning errors into the one line that a user reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regard.errors import UserError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

__all__ = [
    "EXIT_BROKEN_PIPE",
    "EXIT_INTERRUPTED",
    "EXIT_USAGE",
    "UserError",
    "creating",
    "need",
    "one_line",
    "writable_file",
]


def one_line(message: str) -> str:
    """The message without line breaks and runs of spaces."""
    return " ".join(message.split())


@contextmanager
def creating() -> Iterator[None]:
    """Around `regard.create` with options from the user: what the mechanism refuses is the user's error.

    Raises:
        UserError: in place of the TypeError or ValueError.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def need(module: str, *, extra: str, command: str) -> None:
    """Refuse to go on without a library that an optional part of the installation brings.

    Raises:
        UserError: it is not installed; the message says how to install it.
    """
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise UserError(f"regard {command} needs {module}: pip install 'regard[{extra}]'")


def writable_file(path: Path | None) -> None:
    """Refuse a result file that could not be written, before the work that fills it.

    Raises:
        UserError: its folder is missing or closed to us, or the path is a folder.
    """
    if path is None:
        return
    import os

    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: no permission to write in {path.parent}")
