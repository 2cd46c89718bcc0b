"""What the claims of landmark attention train: a digit that is far away, and text that is read in windows."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from regard.claims._recall import VALIDATION_STEP, Examples, Passkey, fit_recall, recall_accuracy
from regard.claims._training import fit_language, language_loss, text_corpus
from regard.measure import one_thread
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.models.language.landmark import LandmarkLM
from regard.models.language.landmark_config import LandmarkConfig

Kind = Literal["landmark", "softmax"]
LENGTH = 128
BLOCK, TOP_K = 15, 2


def network(kind: Kind, vocab_size: int, *, seed: int, window: int) -> nn.Module:
    """Two layers, width 64, 4 heads, rotary positions, a tied head; with landmarks or with softmax attention."""
    torch.manual_seed(seed)
    if kind == "softmax":
        return Decoder(DecoderConfig(vocab_size=vocab_size, dim=64, num_layers=2, num_heads=4, tied=True))
    config = LandmarkConfig(
        vocab_size=vocab_size,
        dim=64,
        num_layers=2,
        num_heads=4,
        block_size=BLOCK,
        seq_len=LENGTH,
        window=window,
        top_k=TOP_K,
    )
    return LandmarkLM(config)


# --------------------------------------------------------------------------------------------------- a digit far away

PASSKEY = Passkey()
PASSKEY_STEPS, PASSKEY_BATCH, PASSKEY_RATE, PASSKEY_WINDOW = 600, 32, 3e-3, 64
MULTIPLES = (4, 8, 16)
CHANCE = 1 / PASSKEY.digits
PASSKEY_TEXT = (
    f"a digit behind its marker in noise, asked at the end; 2 layers, width 64, 4 heads, blocks of {BLOCK}, trained at "
    f"{LENGTH} tokens for {PASSKEY_STEPS} steps of {PASSKEY_BATCH} rows (learning rate 3e-3), read at 512, 1,024 and "
    f"2,048, the digit further than {LENGTH} tokens from the question, over 200 rows"
)


def far_examples(*, batch: int, length: int, seed: int, step: int) -> Examples:
    """Rows in which the digit is further from the question than the training length."""
    tokens, targets = PASSKEY.examples(batch=batch, length=length - LENGTH, seed=seed, step=step)
    generator = torch.Generator().manual_seed(1000 * seed + length)
    noise = torch.randint(0, PASSKEY.noise, (batch, LENGTH), generator=generator)
    rows = torch.cat((tokens[:, :-1], noise, tokens[:, -1:]), dim=1)
    return rows, torch.cat((targets[:, :1].expand(-1, LENGTH), targets), dim=1)


@functools.cache
def passkey_network(kind: Kind) -> nn.Module:
    """A network that has learned to find the digit within the training length."""
    model = network(kind, PASSKEY.vocab_size, seed=0, window=PASSKEY_WINDOW)
    with one_thread():
        fit_recall(
            model,
            lambda step: PASSKEY.examples(batch=PASSKEY_BATCH, length=LENGTH, seed=0, step=step),
            steps=PASSKEY_STEPS,
            learning_rate=PASSKEY_RATE,
            seed=0,
        )
    return model.eval()


@functools.cache
def passkey_accuracy(kind: Kind, multiple: int, *, truncated: bool = False) -> float:
    """Share of rows answered rightly at a multiple of the training length; `truncated` to that length at the end."""
    draw = PASSKEY.examples if multiple == 1 else far_examples
    tokens, targets = draw(batch=200, length=multiple * LENGTH, seed=1000, step=VALIDATION_STEP)
    if truncated:
        tokens, targets = tokens[:, -LENGTH:], targets[:, -LENGTH:]
    with one_thread():
        return recall_accuracy(passkey_network(kind), (tokens, targets), at_once=max(1, 64 // multiple))


# --------------------------------------------------------------------------------------------------- text

TEXT_STEPS, TEXT_BATCH, TEXT_WINDOW, TEXT_MULTIPLE = 500, 16, 96, 8
BUDGET = TEXT_WINDOW + (BLOCK + 1) * TOP_K
TEXT_RECIPE = (
    f"bytes of tiny Shakespeare (1.1 MB), 2 layers, width 64, 4 heads, trained at {LENGTH} bytes for {TEXT_STEPS} "
    f"steps of {TEXT_BATCH} rows (learning rate 3e-3), seeds 0, 1, 2; the same {TEXT_MULTIPLE * LENGTH:,} bytes a text"
)


@functools.cache
def perplexity(kind: Kind, seed: int) -> dict[str, float]:
    """Per byte of held-out text: what a network attends to, by name."""
    corpus, longest = text_corpus(), TEXT_MULTIPLE * LENGTH
    model = network(kind, 256, seed=seed, window=TEXT_WINDOW)
    with one_thread():
        fit_language(model, corpus, steps=TEXT_STEPS, batch=TEXT_BATCH, length=LENGTH, seed=seed)
        if kind == "softmax":
            return {"window": math.exp(language_loss(model, corpus, length=BUDGET, longest=longest, total=32_768))}
        assert isinstance(model, LandmarkLM)
        found = {}
        for name, top_k in (("retrieval", TOP_K), ("no retrieval", 0)):
            reader = LandmarkLM(replace(model.config, top_k=top_k))
            reader.load_state_dict(model.state_dict())
            found[name] = math.exp(language_loss(reader, corpus, length=longest, total=32_768))
    return found
