"""Language modelling: predict the next token of text; perplexity and bits per byte by length, and generated text."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import write_atomically
from regard.models.language.base import LanguageModel
from regard.tasks import text_files
from regard.tasks.evaluation import sums_of
from regard.tasks.generation import Sampling, decodes, generate
from regard.tasks.packing import Sources, find_sources, pack, pieces
from regard.tasks.recipe import Recipe
from regard.tasks.task import Extras, Task, device_of
from regard.tasks.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer, restore_tokenizer
from regard.wording import bytes_in_words, count_in_words

LENGTH_FACTORS = (1, 2, 4, 8)
SAMPLE_TOKENS = 200
PROMPT_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class LanguageSettings:
    """How text becomes windows.

    Args:
        length: tokens of a training window.
        tokenizer: "bytes", "bpe:N" (learned from the data), or the path of a tokenizer.json.
        validation_share: share of the text, at its end, that is not trained on.
        evaluation_tokens: tokens that an evaluation predicts, about; 0 = all.
    """

    length: int = 128
    tokenizer: str = "bytes"
    validation_share: float = 0.1
    evaluation_tokens: int = 16_384

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be between 0 and 1, got {self.validation_share}")
        if self.evaluation_tokens < 0:
            raise ValueError(f"evaluation_tokens must not be negative, got {self.evaluation_tokens}")


class Language(Task):
    """Predicting the next token of text.

    Args:
        settings: how text becomes windows.
    """

    name: ClassVar[str] = "language"
    metric: ClassVar[str] = "bits_per_byte"
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    data_format: ClassVar[str] = "a UTF-8 text or JSONL file, or a folder of them"
    Settings: ClassVar[type] = LanguageSettings
    recipe: ClassVar[Recipe] = Recipe(steps=400, batch=8)

    def __init__(self, settings: LanguageSettings) -> None:
        super().__init__(settings)
        self.tokenizer: Tokenizer | None = None
        self.bytes_per_token = 1.0
        self._parts: dict[str, np.ndarray[Any, Any]] = {}

    # -- raw files

    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Pack the text into one array of ids; its end validates."""
        if cache is None:
            cache = Path(tempfile.mkdtemp(prefix="regard-text-"))
            weakref.finalize(self, shutil.rmtree, cache, ignore_errors=True)
        sources = _sample_sources(cache) if path is None else find_sources(path)
        self.notes += sources.notes
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(self.settings.tokenizer, pieces(sources))
        ids = pack(sources, self.tokenizer, cache)
        wanted = max(int(len(ids) * self.settings.validation_share), self.settings.length + 1)
        if len(ids) - wanted <= self.settings.length:
            needed = 2 * (self.settings.length + 1)
            raise UserError(
                f"{sources.shown} has {len(ids):,} tokens, and one window of {self.settings.length} for training and "
                f"one for validation need {needed:,}: give more text or a smaller --set length"
            )
        self._parts = {"train": ids[:-wanted], "validation": ids[-wanted:], "all": ids}
        self.bytes_per_token = self._measure_tokens()
        self.described = (
            f"{sources.shown}: {bytes_in_words(sources.size_bytes)}, {count_in_words(len(ids), 'token')}, of which the "
            f"last {len(self._parts['validation']):,} validate"
        )

    def _measure_tokens(self) -> float:
        """Bytes of text per token, on the validation part."""
        if isinstance(self.tokenizer, ByteTokenizer):
            return 1.0
        assert self.tokenizer is not None
        ids = self._parts["validation"][:100_000]
        return len(self.tokenizer.decode(ids.tolist()).encode("utf-8")) / len(ids)

    def facts(self) -> dict[str, Any]:
        """The tokenizer."""
        assert self.tokenizer is not None
        return {"tokenizer": self.tokenizer.stored, "bytes_per_token": self.bytes_per_token}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take the tokenizer of an earlier run."""
        self.tokenizer = restore_tokenizer(facts["tokenizer"])
        self.bytes_per_token = float(facts["bytes_per_token"])

    def model_fields(self) -> dict[str, Any]:
        """The number of ids."""
        assert self.tokenizer is not None
        return {"vocab_size": self.tokenizer.vocab_size}

    def example(self, rows: int) -> dict[str, Tensor]:
        """Random tokens, as many as a training window has."""
        assert self.tokenizer is not None
        return {"tokens": torch.randint(self.tokenizer.vocab_size, (rows, self.settings.length))}

    # -- training and evaluation

    def batch(self, random: np.random.Generator, rows: int) -> Tensor:
        """Windows `(rows, length + 1)` from anywhere in the training part."""
        ids, length = self._parts["train"], self.settings.length
        starts = random.integers(0, len(ids) - length, size=rows)
        return torch.from_numpy(ids[starts[:, None] + np.arange(length + 1)].astype(np.int64))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Cross-entropy in nats per token."""
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1).float(), batch[:, 1:].flatten())

    def parts(self) -> tuple[str, ...]:
        """The text's end, or all of it."""
        return ("validation", "all")

    def evaluation_batches(self, part: str, rows: int) -> Iterator[Tensor]:
        """Windows of the training length, evenly spaced over the part."""
        return self._windows(part, self.settings.length, self.settings.length, rows)

    def _windows(self, part: str, length: int, longest: int, rows: int) -> Iterator[Tensor]:
        """Windows over the same stretches of `longest` tokens, whatever their length."""
        ids = self._parts[part]
        budget = min(self.settings.evaluation_tokens or len(ids), len(ids) - 1)
        stretches = max(1, budget // longest)
        stride = (len(ids) - 1) // stretches
        starts = (np.arange(stretches)[:, None] * stride + np.arange(0, longest, length)).reshape(-1)
        at_once = max(1, rows * self.settings.length // length)
        for first in range(0, len(starts), at_once):
            chosen = starts[first : first + at_once, None] + np.arange(length + 1)
            yield torch.from_numpy(ids[chosen].astype(np.int64))

    def score(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Nats and tokens."""
        tokens = batch[:, 1:]
        return {"nats": self.loss(model, batch) * tokens.numel(), "tokens": torch.tensor(tokens.numel())}

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte, and perplexity per token."""
        nats = sums["nats"] / sums["tokens"]
        perplexity = math.exp(min(nats, 700.0)) if nats == nats else math.nan
        return {"bits_per_byte": nats / math.log(2) / self.bytes_per_token, "perplexity": perplexity}

    def extras(self, model: nn.Module, part: str) -> Extras:
        """Perplexity at multiples of the training length, and a sample."""
        ids = self._parts[part]
        lengths = [self.settings.length * factor for factor in LENGTH_FACTORS]
        lengths = [length for length in lengths if length < len(ids)]
        rows = []
        for length in lengths:
            metrics = self._at_length(model, part, length, lengths[-1])
            rows.append((f"{length:,}", f"{metrics['perplexity']:.3f}", f"{metrics['bits_per_byte']:.4f}"))
        table = ("Perplexity by length of the window", ("tokens", "perplexity", "bits per byte"), tuple(rows))
        assert isinstance(model, LanguageModel)
        assert self.tokenizer is not None
        prompt = torch.from_numpy(ids[:PROMPT_TOKENS].astype(np.int64))
        sampling = Sampling(temperature=0.8)
        made = generate(model, prompt, count=SAMPLE_TOKENS, sampling=sampling, with_state=decodes(model))
        text = self.tokenizer.decode([*prompt.tolist(), *made])
        return Extras(samples=(("Continued from the start of the validation text", text),), tables=(table,))

    def _at_length(self, model: nn.Module, part: str, length: int, longest: int) -> dict[str, float]:
        return self.summary(sums_of(self, model, self._windows(part, length, longest, 8)))

    # -- results

    def predict(self, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
        """For every text file a JSONL file: each line, its bits per byte, and the likeliest continuation."""
        assert isinstance(model, LanguageModel)
        written = []
        for path in inputs:
            lines = [line for text in pieces(find_sources(path)) for line in text.splitlines() if line.strip()]
            rows = [json.dumps(self._predict_line(model, line), ensure_ascii=False) for line in lines]
            written.append(out / f"{path.name}.predicted.jsonl")
            write_atomically(written[-1], "\n".join(rows) + "\n")
        return written

    @torch.no_grad()
    def _predict_line(self, model: LanguageModel, line: str) -> dict[str, Any]:
        assert self.tokenizer is not None
        ids = torch.tensor(self.tokenizer.encode(line), device=device_of(model))
        bits = None
        if len(ids) > 1:
            bits = float(self.loss(model, ids[None])) * (len(ids) - 1) / math.log(2) / len(line.encode("utf-8"))
        likeliest = Sampling(temperature=0)
        made = generate(model, ids, count=PROMPT_TOKENS, sampling=likeliest, with_state=decodes(model))
        return {"text": line, "bits_per_byte": bits, "continuation": self.tokenizer.decode(made)}


def _sample_sources(folder: Path) -> Sources:
    """The sources of Python's standard library as one file, which is written once."""
    path = folder / "standard-library.txt"
    if not path.is_file():
        write_atomically(path, b"".join(text_files.standard_library().parts))
    return Sources((path,), "the Python standard library's own sources")
