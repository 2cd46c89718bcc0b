"""Translation and other sequence-to-sequence problems on parallel text: cross-entropy, BLEU, beam search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from regard.errors import UserError
from regard.files import write_atomically
from regard.models.language.seq2seq import Seq2SeqModel, seq2seq_loss
from regard.tasks.beam_search import beam_search
from regard.tasks.parallel_text import Pairs, ParallelText, read_lines, read_parallel, sample_text
from regard.tasks.recipe import Recipe
from regard.tasks.task import Extras, Task, device_of
from regard.tasks.tokenizers import Tokenizer, load_tokenizer, restore_tokenizer
from regard.wording import count_in_words, shown

SHOWN_TRANSLATIONS = 5
ROWS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class TranslationSettings:
    """How parallel text becomes batches.

    Args:
        source: language of the sources, such as "en"; empty = the folder's only pair, English first.
        target: language of the targets.
        tokenizer: joint for both: "bpe:N" (learned from the training part), "bytes", or a tokenizer.json.
        max_length: most tokens of a sentence; longer training pairs are left out, longer inputs are refused.
        label_smoothing: share of the probability that is spread over the vocabulary in training.
        source_weight: weight of the loss on the source, for networks that model it.
        beams: hypotheses of the beam search.
        bleu_lines: sentences of an evaluation that are translated for BLEU; 0 = all.
    """

    source: str = ""
    target: str = ""
    tokenizer: str = "bpe:2000"
    max_length: int = 128
    label_smoothing: float = 0.1
    source_weight: float = 0.1
    beams: int = 4
    bleu_lines: int = 200

    def __post_init__(self) -> None:
        for name in ("max_length", "beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1 or self.source_weight < 0 or self.bleu_lines < 0:
            raise ValueError(
                f"label_smoothing must be in [0, 1), source_weight and bleu_lines not negative, got "
                f"{self.label_smoothing}, {self.source_weight} and {self.bleu_lines}"
            )


class LongLineError(UserError):
    """A line has more tokens than a network was trained for."""


class PairBatch(NamedTuple):
    """Sources and targets, padded at the right; targets run from their start token to their end token."""

    source: Tensor
    source_mask: Tensor
    target: Tensor
    target_mask: Tensor


class Translation(Task):
    """Translating sentences.

    Args:
        settings: how parallel text becomes batches.
    """

    name: ClassVar[str] = "translation"
    metric: ClassVar[str] = "loss"
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    data_format: ClassVar[str] = "a folder with train.en, train.de, val.en, val.de and the like, gzipped or not"
    Settings: ClassVar[type] = TranslationSettings
    recipe: ClassVar[Recipe] = Recipe(steps=400, batch=32, learning_rate=2e-3)

    def __init__(self, settings: TranslationSettings) -> None:
        super().__init__(settings)
        self.tokenizer: Tokenizer | None = None
        self.languages = (settings.source, settings.target)
        self._text: dict[str, Pairs] = {}
        self._ids: dict[str, list[tuple[list[int], list[int]]]] = {}
        self._by_length: np.ndarray[Any, Any] = np.zeros(0, dtype=np.int64)

    # -- raw files

    def read(self, path: Path | None, *, cache: Path | None = None) -> None:
        """Read and tokenise all pairs."""
        source, target = self.languages
        to_train = self.tokenizer is None
        text = sample_text() if path is None else read_parallel(path, source=source, target=target, to_train=to_train)
        self.notes += text.notes
        self.languages = text.languages
        if self.tokenizer is None:
            lines = (line for pair in text.parts["train"] for line in pair)
            self.tokenizer = load_tokenizer(self.settings.tokenizer, lines)
        self._take(text)

    def _take(self, text: ParallelText) -> None:
        assert self.tokenizer is not None
        encode, most = self.tokenizer.encode, self.settings.max_length
        for part, pairs in text.parts.items():
            ids = [(encode(source), encode(target)) for source, target in pairs]
            kept = [number for number, pair in enumerate(ids) if max(map(len, pair)) < most]
            if len(kept) < len(pairs):
                left_out = count_in_words(len(pairs) - len(kept), "pair")
                self.notes.append(f"{part}: {left_out} of {most} tokens or more left out")
            if not kept:
                raise UserError(f"{text.source}: no pair of {part} is shorter than {most} tokens: raise max_length")
            self._text[part] = [pairs[number] for number in kept]
            self._ids[part] = [ids[number] for number in kept]
        lengths = [len(source) + len(target) for source, target in self._ids.get("train", [])]
        self._by_length = np.argsort(lengths, kind="stable")
        counts = ", ".join(f"{len(pairs):,} {part}" for part, pairs in self._text.items())
        self.described = f"{text.source}: {'-'.join(self.languages)}, pairs: {counts}"

    def facts(self) -> dict[str, Any]:
        """Tokenizer and languages."""
        assert self.tokenizer is not None
        return {"tokenizer": self.tokenizer.stored, "languages": list(self.languages)}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take tokenizer and languages of an earlier run."""
        self.tokenizer = restore_tokenizer(facts["tokenizer"])
        source, target = facts["languages"]
        self.languages = (str(source), str(target))

    @property
    def _pad_id(self) -> int:
        assert self.tokenizer is not None
        return self.tokenizer.vocab_size

    @property
    def _start_id(self) -> int:
        return self._pad_id + 1

    @property
    def _end_id(self) -> int:
        return self._pad_id + 2

    def model_fields(self) -> dict[str, Any]:
        """The tokenizer's ids and three more: padding, start and end."""
        # a decoder-only network has source and target in one row
        longest = 2 * (self.settings.max_length + 2)
        return {"vocab_size": self._end_id + 1, "pad_id": self._pad_id, "max_positions": longest}

    # -- training and evaluation

    def batch(self, random: np.random.Generator, rows: int) -> PairBatch:
        """Pairs of similar length, so that little is padding."""
        pairs = self._ids["train"]
        rows = min(rows, len(pairs))
        near = min(len(pairs), 4 * rows)
        start = int(random.integers(0, len(pairs) - near + 1))
        chosen = start + random.choice(near, size=rows, replace=False)
        return self._padded([pairs[int(number)] for number in self._by_length[chosen]])

    def _padded(self, pairs: list[tuple[list[int], list[int]]]) -> PairBatch:
        source, source_mask = _rows([[*source, self._end_id] for source, _ in pairs], self._pad_id)
        target, target_mask = _rows([[self._start_id, *target, self._end_id] for _, target in pairs], self._pad_id)
        return PairBatch(source, source_mask, target, target_mask)

    def loss(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """Smoothed cross-entropy of the target, and the source's where the network models it."""
        source, source_mask, target, target_mask = batch
        output = model(source, target, source_mask=source_mask, target_mask=target_mask)
        return seq2seq_loss(
            output,
            source,
            target,
            source_mask=source_mask,
            target_mask=target_mask,
            label_smoothing=self.settings.label_smoothing,
            source_weight=0.0 if output.source is None else self.settings.source_weight,
        )

    def parts(self) -> tuple[str, ...]:
        """Those that the files have."""
        return tuple(part for part in ("validation", "test") if part in self._ids)

    def evaluation_batches(self, part: str, rows: int) -> Iterator[PairBatch]:
        """All pairs in order."""
        pairs = self._ids[part]
        for start in range(0, len(pairs), rows):
            yield self._padded(pairs[start : start + rows])

    def score(self, model: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        """Nats, correct tokens and tokens of the targets."""
        source, source_mask, target, target_mask = batch
        scores = model(source, target, source_mask=source_mask, target_mask=target_mask).target[:, :-1].float()
        real, wanted = target_mask[:, 1:], target[:, 1:]
        nats = -scores.log_softmax(dim=-1).gather(-1, wanted[..., None])[..., 0]
        right = (scores.argmax(dim=-1) == wanted) & real
        return {"nats": torch.where(real, nats, 0).sum(), "right": right.sum(), "tokens": real.sum()}

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nats and perplexity per token, and the share of tokens that are right given those before them."""
        loss = sums["nats"] / sums["tokens"]
        perplexity = math.exp(min(loss, 700.0)) if loss == loss else math.nan
        return {"loss": loss, "perplexity": perplexity, "token_accuracy": sums["right"] / sums["tokens"]}

    def extras(self, model: nn.Module, part: str) -> Extras:
        """BLEU, and the first translations."""
        from sacrebleu.metrics.bleu import BLEU

        pairs = self._text[part][: self.settings.bleu_lines or None]
        made = self.translate(model, [source for source, _ in pairs])
        bleu = BLEU()
        score = bleu.corpus_score(made, [[target for _, target in pairs]])
        row = (f"{len(pairs):,}", f"{score.score:.2f}", str(self.settings.beams), str(bleu.get_signature()))
        table = (f"BLEU on {part}", ("sentences", "BLEU", "beams", "signature"), (row,))
        samples = tuple(
            (source, f"{ours}\n(reference: {target})")
            for (source, target), ours in list(zip(pairs, made, strict=True))[:SHOWN_TRANSLATIONS]
        )
        return Extras(samples=samples, tables=(table,))

    # -- results

    def translate(self, model: nn.Module, lines: list[str]) -> list[str]:
        """The translation of every line; an empty line stays empty.

        Raises:
            LongLineError: a line of `max_length` tokens or more.
        """
        assert self.tokenizer is not None
        assert isinstance(model, Seq2SeqModel)
        ids = [self.tokenizer.encode(line) for line in lines]
        for number, tokens in enumerate(ids, start=1):
            if len(tokens) >= self.settings.max_length:
                raise LongLineError(
                    f"line {number} has {len(tokens)} tokens: fewer than {self.settings.max_length} fit"
                )
        made = [""] * len(lines)
        order = sorted((number for number, tokens in enumerate(ids) if tokens), key=lambda number: len(ids[number]))
        for start in range(0, len(order), ROWS_AT_ONCE):
            numbers = order[start : start + ROWS_AT_ONCE]
            for number, tokens in zip(numbers, self._search(model, [ids[number] for number in numbers]), strict=True):
                made[number] = self.tokenizer.decode(token for token in tokens if token < self._pad_id)
        return made

    def _search(self, model: Seq2SeqModel, sources: list[list[int]]) -> list[list[int]]:
        source, mask = _rows([[*tokens, self._end_id] for tokens in sources], self._pad_id)
        return beam_search(
            model,
            source.to(device_of(model)),
            mask.to(device_of(model)),
            start_id=self._start_id,
            end_id=self._end_id,
            max_len=self.settings.max_length,
            beams=self.settings.beams,
        )

    def predict(self, model: nn.Module, inputs: list[Path], out: Path) -> list[Path]:
        """For every text file one with the translation of each line."""
        written = []
        for path in inputs:
            try:
                made = self.translate(model, read_lines(path))
            except LongLineError as error:
                raise UserError(f"{shown(path)}, {error}") from None
            name = path.name.removesuffix(".gz").removesuffix(".txt")
            written.append(out / f"{name}.{self.languages[1]}.txt")
            write_atomically(written[-1], "".join(f"{line}\n" for line in made))
        return written


def _rows(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows padded to the longest, and their mask."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = True
    return ids, mask
