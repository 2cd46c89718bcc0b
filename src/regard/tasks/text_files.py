"""Text as users have it: a UTF-8 file, a folder of them, or the Python standard library's own sources."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from regard.errors import UserError
from regard.wording import count_in_words, shown

MAX_BYTES = 64 * 2**20
_NOT_LIBRARY_CODE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass
class GatheredText:
    """Files read so far, and what was passed over."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    files: int = 0
    hidden: int = 0
    binary: int = 0
    unreadable: int = 0
    cut: bool = False

    def add(self, content: bytes, goes_on: bool) -> None:
        """Add a file's content, or as much of it as there is room for; `goes_on` says that it was cut already."""
        if not content.endswith(b"\n"):
            content += b"\n"
        room = MAX_BYTES - self.size
        self.cut = self.cut or goes_on or len(content) > room + 1
        self.parts.append(content[:room])
        self.size += min(len(content), room)
        self.files += 1

    def passed_over(self) -> str:
        """What was not read, in words; empty where all was."""
        counts = [(self.hidden, "hidden"), (self.binary, "binary or not UTF-8"), (self.unreadable, "unreadable")]
        return ", ".join(f"{count_in_words(count, 'file')} {why}" for count, why in counts if count)


def gather_text(path: Path) -> GatheredText:
    """Read a file, or the files of a folder in the order of their paths, up to `MAX_BYTES`.

    Raises:
        UserError: missing, unreadable, empty or binary.
    """
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"there is no file or folder {shown(path)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {shown(path)}: {reason_of(error)}") from None
    if stat.S_ISDIR(kind):
        return _folder(path)
    if not stat.S_ISREG(kind):
        raise UserError(f"{shown(path)} is neither a file nor a folder")
    gathered = GatheredText()
    gathered.add(*_text_file(path))
    return gathered


def reason_of(error: Exception) -> str:
    """What the system says of an error, without its number and path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _read(path: Path) -> tuple[bytes, bool]:
    """The file's first bytes up to the limit, cut where a character ends, and whether the file goes on."""
    with path.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    end = min(len(content), MAX_BYTES)
    goes_on = len(content) > end
    while goes_on and end > MAX_BYTES - 4 and content[end] & 0xC0 == 0x80:
        end -= 1
    return content[:end], goes_on


def _text_file(path: Path) -> tuple[bytes, bool]:
    try:
        content, goes_on = _read(path)
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {reason_of(error)}") from None
    if not content:
        raise UserError(f"{shown(path)} is empty")
    if why := why_not_text(content):
        raise UserError(f"{shown(path)} is not UTF-8 text: {why}")
    return content, goes_on


def why_not_text(content: bytes) -> str:
    """Why these bytes are not text; empty where they are."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it begins with the mark of UTF-16"
    if (zero := content.find(b"\0")) >= 0:
        return f"byte {zero:,} is zero"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte {error.start:,} is 0x{content[error.start]:02x}"
    return ""


def _folder(folder: Path) -> GatheredText:
    gathered = GatheredText()
    for path in files_below(folder, gathered):
        if gathered.size >= MAX_BYTES:
            gathered.cut = True
            break
        try:
            # a pipe or a device in the folder would block or never end
            content, goes_on = _read(path) if path.is_file() else (b"\0", False)
        except OSError:
            gathered.unreadable += 1
            continue
        if why_not_text(content):
            gathered.binary += 1
        elif content:
            gathered.add(content, goes_on)
    if not gathered.parts:
        skipped = gathered.passed_over()
        raise UserError(f"{shown(folder)} has no text in it" + (f" (passed over: {skipped})" if skipped else ""))
    return gathered


def files_below(folder: Path, gathered: GatheredText) -> Iterator[Path]:
    """All files that are not hidden, in the order of their paths; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise UserError(f"cannot read {shown(folder)}: {reason_of(error)}")
        gathered.unreadable += 1

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                gathered.hidden += 1
            else:
                yield Path(place, name)


def standard_library() -> GatheredText:
    """The sources of Python's standard library, without its tests.

    Raises:
        UserError: this Python comes without them.
    """
    root = Path(sysconfig.get_path("stdlib"))
    gathered = GatheredText()
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _NOT_LIBRARY_CODE and not name.startswith("."))
        for name in sorted(files):
            content = Path(place, name).read_bytes() if name.endswith(".py") else b""
            if content and not why_not_text(content):
                gathered.add(content, False)
    if not gathered.parts:
        raise UserError(f"this Python has no sources of its standard library at {shown(root)}: give --data")
    return gathered
