"""Byte-level text for the race: read, checked, split into training and validation, sampled by seed and step."""

from __future__ import annotations

import os
import platform
import stat
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regard.compare.wording import bytes_in_words, count_in_words, shown
from regard.errors import UserError

MAX_BYTES = 64 * 2**20
FACTORS = (1, 2, 4, 8)
VALIDATION_SHARE = 10
EVALUATION_BYTES = 2**15
SAMPLE_BYTES = 48
_NOT_LIBRARY_CODE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Text in two parts.

    Args:
        train: the part that is trained on.
        validation: the part at the end that quality is measured on.
        source: where it comes from.
        description: one line for the report.
        notes: what the user should know.
    """

    train: bytes
    validation: bytes
    source: str
    description: str
    notes: tuple[str, ...] = ()


@dataclass
class _Gathering:
    """Files read so far, and what was passed over."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    files: int = 0
    hidden: int = 0
    binary: int = 0
    unreadable: int = 0
    cut: bool = False

    def add(self, content: bytes, goes_on: bool) -> None:
        if not content.endswith(b"\n"):
            content += b"\n"
        room = MAX_BYTES - self.size
        self.cut = self.cut or goes_on or len(content) > room + 1
        self.parts.append(content[:room])
        self.size += min(len(content), room)
        self.files += 1

    def passed_over(self) -> str:
        counts = [(self.hidden, "hidden"), (self.binary, "binary or not UTF-8"), (self.unreadable, "unreadable")]
        return ", ".join(f"{count_in_words(count, 'file')} {why}" for count, why in counts if count)


def load_corpus(path: str | None, *, train_length: int) -> Corpus:
    """Read the user's text, or the Python standard library's own sources.

    Args:
        path: a UTF-8 file, or a folder, whose files are read recursively in the order of their names (hidden and
            binary ones are passed over and counted); None = the standard library.
        train_length: bytes of a training window.

    Raises:
        UserError: missing, unreadable, empty, binary or too small data.
    """
    notes: list[str] = []
    if path is None:
        gathered = _standard_library()
        source = "the Python standard library's own sources"
        described = f"Python {platform.python_version()}'s standard library, {gathered.files:,} source files"
    else:
        source = shown(path)
        gathered = _gather(Path(path))
        described = f"{shown(Path(path).name, 80)}, {count_in_words(gathered.files, 'file')}"
        if gathered.passed_over():
            notes.append(f"passed over: {gathered.passed_over()}")
    if gathered.cut:
        notes.append(f"only the first {bytes_in_words(MAX_BYTES)} of the text are used")
    content = b"".join(gathered.parts)
    train, validation = _split(content, train_length, source)
    available = factors_for(len(validation), train_length)
    if available != FACTORS:
        notes.append(
            f"the validation text has {len(validation):,} bytes: too few for {FACTORS[len(available)]} times the "
            f"training length, so extrapolation ends at {available[-1]} times"
        )
    return Corpus(train, validation, source, f"{described}, {bytes_in_words(len(content))}", tuple(notes))


def factors_for(validation_bytes: int, train_length: int) -> tuple[int, ...]:
    """The multiples of the training length for which the validation text has at least one whole window."""
    return tuple(factor for factor in FACTORS if factor * train_length < validation_bytes)


def _split(content: bytes, train_length: int, source: str) -> tuple[bytes, bytes]:
    """The last tenth validates; of a short text up to half, so that windows beyond the training length fit."""
    needed = 2 * (train_length + 1)
    if len(content) < needed:
        raise UserError(
            f"{source} has {len(content):,} bytes, and one training and one validation window of {train_length} bytes "
            f"need {needed:,}: give more text or a smaller --train-length"
        )
    wanted = max(len(content) // VALIDATION_SHARE, min(FACTORS[-1] * train_length + 1, len(content) // 2))
    return content[:-wanted], content[-wanted:]


# --------------------------------------------------------------------------------------------------- reading


def _gather(path: Path) -> _Gathering:
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"there is no file or folder {shown(path)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {shown(path)}: {_reason(error)}") from None
    if stat.S_ISDIR(kind):
        return _folder(path)
    if not stat.S_ISREG(kind):
        raise UserError(f"{shown(path)} is neither a file nor a folder")
    gathered = _Gathering()
    gathered.add(*_text_file(path))
    return gathered


def _reason(error: Exception) -> str:
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
        raise UserError(f"cannot read {shown(path)}: {_reason(error)}") from None
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


def _folder(folder: Path) -> _Gathering:
    gathered = _Gathering()
    for path in _files_below(folder, gathered):
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


def _files_below(folder: Path, gathered: _Gathering) -> Iterator[Path]:
    """All files that are not hidden, in the order of their paths; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise UserError(f"cannot read {shown(folder)}: {_reason(error)}")
        gathered.unreadable += 1

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                gathered.hidden += 1
            else:
                yield Path(place, name)


def _standard_library() -> _Gathering:
    root = Path(sysconfig.get_path("stdlib"))
    gathered = _Gathering()
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _NOT_LIBRARY_CODE and not name.startswith("."))
        for name in sorted(files):
            content = Path(place, name).read_bytes() if name.endswith(".py") else b""
            if content and not why_not_text(content):
                gathered.add(content, False)
    if not gathered.parts:
        raise UserError(f"this Python has no sources of its standard library at {shown(root)}: give --data")
    return gathered


# --------------------------------------------------------------------------------------------------- sampling

Bytes = NDArray[np.uint8]


def training_windows(content: Bytes, *, seed: int, step: int, batch: int, length: int) -> NDArray[np.int64]:
    """The windows of one step, the same for every mechanism.

    Args:
        content: the training part.
        seed: which training run.
        step: which step, from 0.
        batch: number of windows.
        length: bytes that are predicted in each window.

    Returns:
        `(batch, length + 1)` bytes: inputs are all but the last, targets all but the first.
    """
    random = np.random.default_rng([seed, step])
    starts = random.integers(0, len(content) - length, size=batch)
    return content[starts[:, None] + np.arange(length + 1)].astype(np.int64)


def validation_windows(
    content: Bytes, *, length: int, longest: int, budget: int = EVALUATION_BYTES
) -> NDArray[np.int64]:
    """Windows over the same stretches of text, whatever their length.

    Evenly spaced stretches of `longest` bytes are cut into windows of `length`, so that every length predicts exactly
    the same bytes, each window from its own first position on.

    Args:
        content: the validation part.
        length: bytes that are predicted in each window; divides `longest`.
        longest: the longest window of this race.
        budget: bytes that are predicted in all, at most (but at least one stretch).

    Returns:
        `(windows, length + 1)` bytes.
    """
    stretches = max(1, min(budget, len(content) - 1) // longest)
    stride = (len(content) - 1) // stretches
    starts = (np.arange(stretches)[:, None] * stride + np.arange(0, longest, length)).reshape(-1)
    return content[starts[:, None] + np.arange(length + 1)].astype(np.int64)


def sample_of(validation: bytes) -> bytes:
    """A short stretch whose attention map is shown: it begins at the start of a line, near the middle."""
    middle = len(validation) // 2
    start = validation.find(b"\n", middle, max(middle, len(validation) - SAMPLE_BYTES)) + 1
    start = start or max(0, len(validation) - SAMPLE_BYTES)
    return validation[start : start + SAMPLE_BYTES]


def byte_labels(sample: bytes) -> list[str]:
    """A label for every byte: the character, or the byte's hexadecimal value."""
    return [chr(byte) if 32 <= byte < 127 or byte in (9, 10) else f"{byte:02x}" for byte in sample]


def entropy_bits(content: Bytes, under: Bytes) -> float:
    """Bits per byte of `content` if only the frequencies of bytes in `under` are known (add-one smoothing)."""
    counts = np.bincount(under, minlength=256) + 1
    bits = -np.log2(counts / counts.sum())
    return float(bits[content].mean())
