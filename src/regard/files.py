"""Writing files so that an interruption never leaves half of one behind."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content` to a temporary file in the same folder and rename it to `path`.

    Args:
        path: the file to write; its folder must exist.
        content: text (written as UTF-8) or bytes.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; `path` is then as it was.
    """
    target = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """Make a folder and its parents for what is written inside; where that fails, those still empty go again.

    Args:
        path: the folder; it may exist.

    Raises:
        OSError: it cannot be made.
    """
    made = missing_folders(path)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        remove_empty(made)
        raise


def missing_folders(path: Path) -> list[Path]:
    """Those of a folder and its parents that there are not, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of the folders, innermost first, that are there and hold nothing."""
    for folder in folders:
        if folder.is_dir() and not os.listdir(folder):
            folder.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
