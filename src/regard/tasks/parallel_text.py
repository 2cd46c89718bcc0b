"""Parallel text: files of one sentence per line in two languages, and a generated sample of numbers and their names."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regard.errors import UserError
from regard.wording import count_in_words, listed, shown

PARTS = {"train": ("train",), "validation": ("val", "valid", "validation", "dev"), "test": ("test",)}
SAMPLE_LINES = {"train": 8000, "validation": 400, "test": 400}
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class ParallelText:
    """Sentence pairs by part.

    Args:
        parts: pairs of "train", "validation" and, where there is one, "test".
        languages: of source and target.
        source: where they come from.
        notes: what the user should know.
    """

    parts: dict[str, Pairs]
    languages: tuple[str, str]
    source: str
    notes: tuple[str, ...] = ()


def read_parallel(folder: Path, *, source: str, target: str, to_train: bool = True) -> ParallelText:
    """Read a folder with `train.en`, `train.de`, `val.en` and the like, gzipped or not.

    Args:
        folder: where they are.
        source: language of the sources, such as "en"; empty = the folder's only pair, English first.
        target: language of the targets.
        to_train: a training pair is needed; otherwise one of validation or test is enough, and both languages given.

    Raises:
        UserError: no such files, files of unequal numbers of lines, or lines that are not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"{shown(folder)} is not a folder with files such as train.en and train.de")
    files = _files(folder)
    if to_train:
        source, target = _languages(folder, files, source, target)
    parts: dict[str, Pairs] = {}
    notes: list[str] = []
    for part, beginnings in PARTS.items():
        stems = [stem for stem in files if stem.startswith(beginnings) and {source, target} <= files[stem].keys()]
        if not stems:
            continue
        if len(stems) > 1:
            notes.append(f"{part}: {stems[0]} is used, and not {listed(stems[1:])}")
        parts[part], dropped = _pairs(files[stems[0]][source], files[stems[0]][target])
        if dropped:
            notes.append(f"{part}: {count_in_words(dropped, 'pair')} with an empty side left out")
    if not to_train and (parts.get("validation") or parts.get("test")):
        return ParallelText(parts, (source, target), shown(folder), tuple(notes))
    if not parts.get("train"):
        raise UserError(f"{shown(folder)} has no train.{source} with a train.{target}")
    if not parts.get("validation"):
        held_out = max(1, len(parts["train"]) // 20)
        parts["validation"], parts["train"] = parts["train"][-held_out:], parts["train"][:-held_out]
        notes.append(f"there is no validation pair: the last {count_in_words(held_out, 'pair')} of train validate")
    if not parts["train"]:
        raise UserError(f"{shown(folder)} has too few pairs: at least 2 are needed")
    return ParallelText(parts, (source, target), shown(folder), tuple(notes))


def _files(folder: Path) -> dict[str, dict[str, Path]]:
    """By stem and language."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        stem, _, language = path.name.removesuffix(".gz").rpartition(".")
        if stem and path.is_file() and language.isalpha() and not path.name.startswith("."):
            found.setdefault(stem, {}).setdefault(language, path)
    return found


def _languages(folder: Path, files: dict[str, dict[str, Path]], source: str, target: str) -> tuple[str, str]:
    trained = {name for stem, languages in files.items() if stem.startswith("train") for name in languages}
    for name, wanted in (("source", source), ("target", target)):
        if wanted and wanted not in trained:
            known = f"it has {', '.join(sorted(trained))}" if trained else "it has no file that begins with train"
            raise UserError(f"{shown(folder)} has no train.{wanted} for the {name}: {known}")
    rest = sorted(trained - {source, target}, key=lambda name: (name != "en", name))
    if (not source) + (not target) > len(rest) or len(trained) < 2:
        raise UserError(f"{shown(folder)} has no pair of files such as train.en and train.de")
    if len(trained) > 2 and not (source and target):
        raise UserError(f"{shown(folder)} has {', '.join(sorted(trained))}: name two with --set source=..,target=..")
    source = source or rest.pop(0)
    return source, target or rest.pop(0)


def _pairs(source: Path, target: Path) -> tuple[Pairs, int]:
    lines = [read_lines(path) for path in (source, target)]
    if len(lines[0]) != len(lines[1]):
        raise UserError(
            f"{shown(source)} has {len(lines[0]):,} lines and {shown(target)} {len(lines[1]):,}: line by line they "
            "must be each other's translation"
        )
    pairs = [pair for pair in zip(*lines, strict=True) if all(pair)]
    return pairs, len(lines[0]) - len(pairs)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, gzipped or not, without surrounding spaces.

    Raises:
        UserError: it cannot be read, is a damaged gzip file, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)} is not UTF-8 text: byte {error.start:,} is wrong") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"cannot read {shown(path)}: {shown(str(error))}") from None
    lines = text.split("\n")
    return [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]


# --------------------------------------------------------------------------------------------------- the sample

_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_ONES = ("zero one two three four five six seven eight nine " + _TEENS).split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_english(number: int) -> str:
    """The name of a number from 0 to 999."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    rest = f" and {in_english(number % 100)}" if number % 100 else ""
    return f"{_ONES[number // 100]} hundred{rest}"


def sample_text() -> ParallelText:
    """Generated pairs, the same every time: one to four numbers, and their English names."""
    random = np.random.default_rng(0)
    parts: dict[str, Pairs] = {}
    seen: set[str] = set()
    for part, count in SAMPLE_LINES.items():
        pairs: Pairs = []
        while len(pairs) < count:
            numbers = [int(number) for number in random.integers(0, 1000, size=random.integers(2, 5))]
            line = " ".join(map(str, numbers))
            if line not in seen:
                seen.add(line)
                pairs.append((line, ", ".join(map(in_english, numbers))))
        parts[part] = pairs
    return ParallelText(parts, ("digits", "en"), "generated numbers and their English names")
