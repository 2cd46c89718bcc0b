"""Errors that a user can cause and put right, and how any other is told in one line."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


class UserError(Exception):
    """Something that the user asked for cannot be done; the message is one line that says what and why.

    The command line prints it as `regard COMMAND: message` and exits with status 2.
    """

    def __str__(self) -> str:
        return " ".join(str(self.args[0]).split()) if self.args else ""


def describe_exception(error: BaseException) -> str:
    """An exception in one line: its type, its message, and the last place outside installed libraries."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return message
    frame = next((frame for frame in reversed(frames) if _is_ours(Path(frame.filename))), frames[-1])
    return f"{message} ({Path(frame.filename).name}:{frame.lineno})"


def _is_ours(file: Path) -> bool:
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    return file.is_relative_to(PACKAGE) or not any(file.is_relative_to(library) for library in libraries)
