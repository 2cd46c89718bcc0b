"""What claims about sequence-to-sequence models share: two small problems, the three backbones, each trained once.

The first problem is a long copy with substitution: the target is the source, three times over, each time through
another substitution table. The second is real translation where the data folder has it, numbers in words otherwise.
"""

from __future__ import annotations

import functools
import gzip
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.claims._training import data_folder, fit
from regard.models.language.ed_seq2seq import EDSeq2Seq, EDSeq2SeqConfig
from regard.models.language.lm_seq2seq import LMSeq2Seq, LMSeq2SeqConfig
from regard.models.language.palm_seq2seq import PALMSeq2Seq, PALMSeq2SeqConfig
from regard.models.language.seq2seq import Seq2SeqModel, seq2seq_loss

PAD, START, END, UNKNOWN = range(4)
SPECIAL = 4
COPY_VOCABULARY, COPY_SOURCE, PASSES = 40, 8, 3
COPY_STEPS, TRANSLATION_STEPS = 400, 300
BATCH, LEARNING_RATE, SOURCE_WEIGHT = 16, 3e-3, 0.5
WORDS, LONGEST = 1200, 18
SIZES: dict[str, Any] = {"dim": 64, "num_heads": 4, "mlp_dim": 128, "dropout": 0.0, "max_positions": 64}
RECIPE = (
    "width 64, ED 2 + 2 layers, LM 5, PALM 2, AdamW at 3e-3, batch 16; copy: source of 8 symbols, target of 24, "
    f"vocabulary 40, {COPY_STEPS} steps"
)


def backbone(name: str, vocab_size: int, **changes: Any) -> Seq2SeqModel:
    """An LM and an ED with equally many parameters, or a PALM with fewer.

    Args:
        name: "lm", "ed" or "palm".
        vocab_size: number of ids.
        changes: fields of PALM's config.
    """
    if name == "lm":
        return LMSeq2Seq(LMSeq2SeqConfig(vocab_size=vocab_size, num_layers=5, **SIZES))
    if name == "ed":
        return EDSeq2Seq(EDSeq2SeqConfig(vocab_size=vocab_size, num_encoder_layers=2, num_decoder_layers=2, **SIZES))
    return PALMSeq2Seq(PALMSeq2SeqConfig(vocab_size=vocab_size, num_layers=2, **SIZES, **changes))


def parameter_count(model: Seq2SeqModel) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Batch:
    """Sources and targets; masks are None where nothing is padded."""

    source: Tensor
    target: Tensor
    source_mask: Tensor | None = None
    target_mask: Tensor | None = None


def _loss(model: Any, batch: Batch) -> Tensor:
    output = model(batch.source, batch.target, source_mask=batch.source_mask, target_mask=batch.target_mask)
    return seq2seq_loss(
        output,
        batch.source,
        batch.target,
        source_mask=batch.source_mask,
        target_mask=batch.target_mask,
        source_weight=0.0 if output.source is None else SOURCE_WEIGHT,
    )


@torch.no_grad()
def second_half_accuracy(model: Seq2SeqModel, batch: Batch) -> float:
    """Per cent of the tokens in the second half of each target that score highest, given the true ones before."""
    output = model(batch.source, batch.target, source_mask=batch.source_mask, target_mask=batch.target_mask)
    real = torch.ones_like(batch.target).bool() if batch.target_mask is None else batch.target_mask
    lengths = real.sum(dim=1, keepdim=True)
    places = torch.arange(1, batch.target.shape[1])
    counted = real[:, 1:] & (places >= (lengths + 1) // 2)
    hits = output.target[:, :-1].argmax(dim=-1) == batch.target[:, 1:]
    return 100 * float(hits[counted].double().mean())


@torch.no_grad()
def greedy(model: Seq2SeqModel, source: Tensor, *, steps: int) -> Tensor:
    """The likeliest token at every step, from the start token on, by the model's own state."""
    state = model.encode(source, max_len=steps)
    token, generated = torch.full((len(source), 1), START), []
    for _ in range(steps):
        scores, state = model.step(token, state)
        token = scores[:, -1:].argmax(dim=-1)
        generated.append(token)
    return torch.cat(generated, dim=1)


# --------------------------------------------------------------------------------------------------- copying


@functools.cache
def _tables() -> Tensor:
    generator = torch.Generator().manual_seed(20261)
    symbols = COPY_VOCABULARY - SPECIAL
    return torch.stack([torch.randperm(symbols, generator=generator) for _ in range(PASSES)]) + SPECIAL


def copies(count: int, *, seed: int) -> Batch:
    """Sources of random symbols, and targets that are all of the source under each table in turn."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(0, COPY_VOCABULARY - SPECIAL, (count, COPY_SOURCE), generator=generator)
    passes = [table[symbols] for table in _tables()]
    ends = [torch.full((count, 1), token) for token in (START, END)]
    return Batch(symbols + SPECIAL, torch.cat((ends[0], *passes, ends[1]), dim=1))


def copies_to_judge() -> Batch:
    """64 pairs that no training saw."""
    return copies(64, seed=10**9)


@functools.cache
def trained_on_copies(name: str, change: tuple[tuple[str, Any], ...] = (), seed: int = 0) -> Seq2SeqModel:
    """A backbone after its training on copies; the same model at every call.

    Args:
        name: "lm", "ed" or "palm".
        change: fields of PALM's config that differ.
        seed: of weights and data.
    """
    torch.manual_seed(seed)
    model = backbone(name, COPY_VOCABULARY, **dict(change))
    fit(
        model,
        lambda step: copies(BATCH, seed=10_000 * (seed + 1) + step),
        _loss,
        steps=COPY_STEPS,
        learning_rate=LEARNING_RATE,
        seed=seed,
    )
    return model


# --------------------------------------------------------------------------------------------------- translation


@dataclass(frozen=True)
class Corpus:
    """Sentence pairs as ids, and where they come from."""

    train: list[tuple[list[int], list[int]]]
    test: list[tuple[list[int], list[int]]]
    vocab_size: int
    source: str


@functools.cache
def parallel_corpus() -> Corpus:
    """Multi30k English-German where the data folder has it; otherwise numbers up to 99,999 in words."""
    folder = data_folder("multi30k")
    if folder is None:
        train, test, source = *_numbers(), "numbers in English and German words, in place of Multi30k"
    else:
        train, test = (_pairs(folder, part) for part in ("train", "test_2016_flickr"))
        source = "Multi30k English-German"
    counts = Counter(word for pair in train for side in pair for word in side)
    known = {word: SPECIAL + rank for rank, (word, _) in enumerate(counts.most_common(WORDS))}

    def ids(words: list[str]) -> list[int]:
        return [known.get(word, UNKNOWN) for word in words]

    coded = [
        [(ids(a), [START, *ids(b), END]) for a, b in part if 0 < len(a) <= LONGEST and 0 < len(b) <= LONGEST]
        for part in (train, test)
    ]
    return Corpus(coded[0], coded[1], SPECIAL + len(known), source)


def _pairs(folder: Path, part: str) -> list[tuple[list[str], list[str]]]:
    sides = []
    for language in ("en", "de"):
        with gzip.open(folder / f"{part}.{language}.gz", "rt", encoding="utf-8") as lines:
            sides.append([re.findall(r"\w+|[^\w\s]", line.lower()) for line in lines])
    return list(zip(*sides, strict=True))


_ENGLISH_NAMES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen"""
_GERMAN_NAMES = """null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn
sechzehn siebzehn achtzehn neunzehn"""
_ENGLISH_TENS_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
_GERMAN_TENS_NAMES = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"
_ENGLISH, _GERMAN = _ENGLISH_NAMES.split(), _GERMAN_NAMES.split()
_ENGLISH_TENS, _GERMAN_TENS = _ENGLISH_TENS_NAMES.split(), _GERMAN_TENS_NAMES.split()


def in_english(number: int) -> list[str]:
    """A number below 100,000 in words: `twenty three thousand one hundred five`."""
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = in_english(number % size) if number % size else []
            return [*in_english(number // size), name, *rest]
    if number < 20:
        return [_ENGLISH[number]]
    return [_ENGLISH_TENS[number // 10 - 2], *([_ENGLISH[number % 10]] if number % 10 else [])]


def in_german(number: int) -> list[str]:
    """The same in German, its parts apart: `drei und zwanzig tausend eins hundert fünf`."""
    for size, name in ((1000, "tausend"), (100, "hundert")):
        if number >= size:
            rest = in_german(number % size) if number % size else []
            return [*in_german(number // size), name, *rest]
    if number < 20:
        return [_GERMAN[number]]
    return [*([_GERMAN[number % 10], "und"] if number % 10 else []), _GERMAN_TENS[number // 10 - 2]]


def _numbers() -> tuple[list[tuple[list[str], list[str]]], list[tuple[list[str], list[str]]]]:
    order = torch.randperm(100_000, generator=torch.Generator().manual_seed(7)).tolist()
    made = [(in_english(number), in_german(number)) for number in order[:10_000]]
    return made[:9_000], made[9_000:]


def _padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return ids, ids != PAD


def _batch_of(pairs: list[tuple[list[int], list[int]]]) -> Batch:
    (source, source_mask), (target, target_mask) = (_padded([pair[side] for pair in pairs]) for side in (0, 1))
    return Batch(source, target, source_mask, target_mask)


def sentences_to_judge(count: int = 500) -> Batch:
    """Test pairs."""
    return _batch_of(parallel_corpus().test[:count])


@functools.cache
def trained_on_translation(name: str, seed: int = 0) -> Seq2SeqModel:
    """A backbone after its training on sentence pairs; the same model at every call."""
    corpus = parallel_corpus()
    torch.manual_seed(seed)
    model = backbone(name, corpus.vocab_size)

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(10_000 * (seed + 1) + step)
        chosen = torch.randint(0, len(corpus.train), (BATCH,), generator=generator).tolist()
        return _batch_of([corpus.train[index] for index in chosen])

    fit(model, batch, _loss, steps=TRANSLATION_STEPS, learning_rate=LEARNING_RATE, seed=seed)
    return model
