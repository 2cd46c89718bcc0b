"""Text of any size as one memory-mapped array of token ids: files are streamed, nothing is held in memory whole.

Plain text, JSONL (a `text` field per line), and folders of both. A packed file is named for its sources and tokenizer,
so that a run that is resumed finds it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regard.errors import UserError
from regard.tasks import text_files
from regard.tasks.tokenizers import BYTES, ByteTokenizer, Tokenizer
from regard.wording import shown

PIECE = 2**20
JSON_LINES = {".jsonl", ".ndjson"}


@dataclass(frozen=True)
class Sources:
    """The files of a corpus.

    Args:
        files: in the order in which they are read.
        shown: where they come from, for messages.
        notes: what the user should know.
    """

    files: tuple[Path, ...]
    shown: str
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)


def find_sources(path: Path) -> Sources:
    """The text files at `path`: itself, or those in the folder that are text.

    Raises:
        UserError: nothing is there, it is empty, or it is not text.
    """
    if path.is_dir():
        seen = text_files.GatheredText()
        kept = []
        for file in text_files.files_below(path, seen):
            if why := _why_unreadable(file):
                seen.binary += why == "binary"
                seen.unreadable += why == "unreadable"
            elif file.stat().st_size:
                kept.append(file)
        passed = seen.passed_over()
        if not kept:
            raise UserError(f"{shown(path)} has no text in it" + (f" (passed over: {passed})" if passed else ""))
        return Sources(tuple(kept), shown(path), (f"passed over: {passed}",) if passed else ())
    if not path.exists():
        raise UserError(f"there is no file or folder {shown(path)}")
    if not path.is_file():
        raise UserError(f"{shown(path)} is neither a file nor a folder")
    try:
        with path.open("rb") as stream:
            first = stream.read(PIECE)
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {text_files.reason_of(error)}") from None
    if not first:
        raise UserError(f"{shown(path)} is empty")
    if why := text_files.why_not_text(_whole_characters(first)):
        raise UserError(f"{shown(path)} is not UTF-8 text: {why}")
    return Sources((path,), shown(path))


def _why_unreadable(path: Path) -> str:
    if not path.is_file():
        return "binary"
    try:
        with path.open("rb") as stream:
            first = stream.read(PIECE)
    except OSError:
        return "unreadable"
    return "binary" if text_files.why_not_text(_whole_characters(first)) else ""


def _whole_characters(content: bytes) -> bytes:
    """Without the beginning of a character that the end of a piece cut."""
    for back in range(1, min(4, len(content)) + 1):
        byte = content[-back]
        if byte & 0xC0 == 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return content if back >= needed else content[:-back]
        if byte & 0x80 == 0:
            break
    return content


def pieces(sources: Sources) -> Iterator[str]:
    """The text of all files, in pieces of about a mebibyte that end where a line ends, where there are lines.

    Raises:
        UserError: bytes that are not UTF-8, or a line that is no JSON object with a text; file and line are named.
    """
    for path in sources.files:
        if path.suffix.lower() in JSON_LINES:
            yield from _json_texts(path)
            continue
        yield from _lines_of(path)


def _lines_of(path: Path) -> Iterator[str]:
    rest = b""
    ends_line = True
    with path.open("rb") as stream:
        while content := stream.read(PIECE):
            content = rest + content
            end = content.rfind(b"\n") + 1 or len(_whole_characters(content))
            rest = content[end:]
            yield _decoded(content[:end], path)
            ends_line = content[:end].endswith(b"\n")
    if rest or not ends_line:
        # a file without a last newline must not run into the next
        yield _decoded(rest + b"\n", path)


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{shown(path)} is not UTF-8 text: {text_files.why_not_text(content)}") from None


def _json_texts(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise UserError(f'{shown(path)}, line {number}: not a JSON object with a "text"')
            yield text if text.endswith("\n") else text + "\n"


def pack(sources: Sources, tokenizer: Tokenizer, folder: Path) -> np.ndarray[Any, Any]:
    """All token ids as a read-only memory map; an array that was packed before is taken as it is.

    Args:
        sources: the files.
        tokenizer: what turns their text into ids.
        folder: where the packed file is kept; must exist.

    Raises:
        UserError: text that cannot be read, or none at all.
        OSError: no room in the folder.
    """
    kind = np.uint8 if tokenizer.vocab_size <= BYTES else np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    path = folder / f"tokens-{_fingerprint(sources, tokenizer)}.bin"
    if not path.is_file():
        _write(path, _arrays(pieces(sources), tokenizer, kind))
    if path.stat().st_size == 0:
        path.unlink()
        raise UserError(f"{sources.shown} is empty")
    return np.memmap(path, dtype=kind, mode="r")


def _arrays(texts: Iterable[str], tokenizer: Tokenizer, kind: Any) -> Iterator[bytes]:
    for text in texts:
        if isinstance(tokenizer, ByteTokenizer):
            yield text.encode("utf-8")
        else:
            yield np.asarray(tokenizer.encode(text), dtype=kind).tobytes()


def _write(path: Path, parts: Iterable[bytes]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            for part in parts:
                stream.write(part)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _fingerprint(sources: Sources, tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256(tokenizer.stored.encode("utf-8"))
    for path in sources.files:
        described = path.stat()
        digest.update(os.fsencode(path.resolve()))
        digest.update(f"\0{described.st_size} {described.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]
