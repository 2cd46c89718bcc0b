"""Byte-level text for the race: read, checked, split into training and validation, sampled by seed and step."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regard.errors import UserError
from regard.tasks import text_files
from regard.wording import bytes_in_words, count_in_words, shown

FACTORS = (1, 2, 4, 8)
VALIDATION_SHARE = 10
EVALUATION_BYTES = 2**15
SAMPLE_BYTES = 48


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
        gathered = text_files.standard_library()
        source = "the Python standard library's own sources"
        described = f"Python {platform.python_version()}'s standard library, {gathered.files:,} source files"
    else:
        source = shown(path)
        gathered = text_files.gather_text(Path(path))
        described = f"{shown(Path(path).name, 80)}, {count_in_words(gathered.files, 'file')}"
        if gathered.passed_over():
            notes.append(f"passed over: {gathered.passed_over()}")
    if gathered.cut:
        notes.append(f"only the first {bytes_in_words(text_files.MAX_BYTES)} of the text are used")
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
