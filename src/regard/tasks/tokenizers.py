"""From text to token ids and back: bytes, or a Hugging Face tokenizer."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from regard.errors import UserError
from regard.wording import shown

BYTES = 256


class Tokenizer(ABC):
    """Text to ids and back; `stored` is what a checkpoint keeps of it."""

    vocab_size: int
    stored: str

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; what is no text becomes the replacement character."""

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Pieces of text as the ids come: what the text of all ids so far has more than before, in whole characters."""
        seen: list[int] = []
        told = ""
        for number in ids:
            seen.append(number)
            text = self.decode(seen)
            if not text.endswith("\ufffd") and text.startswith(told):
                yield text[len(told) :]
                told = text
        if rest := self.decode(seen)[len(told) :]:
            yield rest


class ByteTokenizer(Tokenizer):
    """Every byte of the UTF-8 text is a token."""

    vocab_size = BYTES
    stored = "bytes"

    def encode(self, text: str) -> list[int]:
        """The bytes."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the bytes."""
        return bytes(ids).decode("utf-8", errors="replace")

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Characters as soon as their last byte is there."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for number in ids:
            if piece := decoder.decode(bytes([number])):
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, from its JSON.

    Args:
        content: what a `tokenizer.json` holds.
        name: for messages.

    Raises:
        UserError: the library is missing, or the content is no tokenizer.
    """

    def __init__(self, content: str, *, name: str) -> None:
        library = _library()
        try:
            self._inner = library.Tokenizer.from_str(content)
        except Exception as error:
            # the library raises bare exceptions
            raise UserError(f"{name} is no tokenizer.json: {shown(str(error))}") from None
        self.stored = content
        self.vocab_size = self._inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids, without special tokens.

        Raises:
            UserError: text that the tokenizer has no ids for.
        """
        try:
            return self._inner.encode(text, add_special_tokens=False).ids
        except Exception as error:
            # the library raises bare exceptions
            raise UserError(f"the tokenizer cannot take this text: {shown(str(error))}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text."""
        return self._inner.decode(list(ids), skip_special_tokens=False)


def _library() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise UserError("a tokenizer.json needs the tokenizers library: pip install 'regard[hf]'") from None
    return tokenizers


def load_tokenizer(wanted: str, texts: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer that a user names.

    Args:
        wanted: "bytes"; "bpe:N", byte-pair encoding with N entries learned from `texts`; or the path of a
            tokenizer.json, or of a folder with one.
        texts: what is learned from.

    Raises:
        UserError: no such file, not a tokenizer, or a number of entries below 257.
    """
    if wanted == "bytes":
        return ByteTokenizer()
    if wanted.startswith("bpe:"):
        return _learn(wanted.removeprefix("bpe:"), texts)
    path = Path(wanted)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"there is no tokenizer {shown(path)}: give bytes, bpe:N or the path of a tokenizer.json")
    try:
        return HuggingFaceTokenizer(path.read_text(encoding="utf-8"), name=shown(path))
    except UnicodeDecodeError:
        raise UserError(f"{shown(path)} is no tokenizer.json: it is not UTF-8 text") from None


def _learn(entries: str, texts: Iterable[str]) -> Tokenizer:
    if not entries.isdigit() or int(entries) <= BYTES:
        raise UserError(f"bpe:{shown(entries)} must name more than {BYTES} entries, such as bpe:2000")
    library = _library()
    inner = library.Tokenizer(library.models.BPE())
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=int(entries), initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(inner.to_str(), name=f"bpe:{entries}")


def restore_tokenizer(stored: str) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Raises:
        UserError: what is stored is none.
    """
    return ByteTokenizer() if stored == "bytes" else HuggingFaceTokenizer(stored, name="the checkpoint's tokenizer")
