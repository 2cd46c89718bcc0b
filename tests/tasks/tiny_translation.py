"""A tiny network and tiny parallel text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regard.models.language.ed_seq2seq import EDSeq2Seq, EDSeq2SeqConfig
from regard.tasks.translation import Translation, TranslationSettings

WORDS = ("the", "a", "dog", "cat", "sleeps", "runs", "quickly", "today", "and", "then")


def write_pairs(folder: Path) -> Path:
    """Sentences of random words, and the same words in capitals from the end to the start."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(5)
    for part, count in {"train": 41, "val": 7, "test": 5}.items():
        lines = [" ".join(random.choice(WORDS, size=random.integers(1, 8))) for _ in range(count)]
        (folder / f"{part}.en").write_text("\n".join(lines) + "\n")
        turned = [" ".join(line.upper().split()[::-1]) for line in lines]
        (folder / f"{part}.de").write_text("\n".join(turned) + "\n")
    return folder


def read_pairs(folder: Path, **settings) -> Translation:
    """The task on that text, with bytes as tokens."""
    task = Translation(TranslationSettings(**{"tokenizer": "bytes", "max_length": 60, **settings}))
    task.read(folder)
    return task


def tiny_network(**fields) -> EDSeq2Seq:
    """An encoder and a decoder of one layer each, in eval mode."""
    sizes = {"dim": 12, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "num_kv_heads": 2}
    return EDSeq2Seq(EDSeq2SeqConfig(**sizes, mlp_dim=16, dropout=0.0, **fields)).eval()
