"""What claims about trained networks share: a small corpus, one plain recipe, and losses on held-out data.

The recipe: AdamW with betas (0.9, 0.95), a tenth of the steps warm-up, then cosine to a tenth of the peak, gradients
clipped to norm 1. Everything depends on the seed alone, so variants that share a seed see the same batches.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.tasks.recipe import Recipe

SEEDS = (0, 1, 2)
CLIP_NORM = 1.0


def data_folder(name: str) -> Path | None:
    """A folder with real data, below REGARD_DATA or `../shared/data`; None where it is absent."""
    folder = Path(os.environ.get("REGARD_DATA", "../shared/data"), *name.split("/"))
    return folder if folder.is_dir() else None


@dataclass(frozen=True)
class TextCorpus:
    """Bytes for a small language model.

    Args:
        train: what is trained on.
        validation: what losses are measured on.
        source: where it comes from, for the measurement's detail.
    """

    train: Tensor
    validation: Tensor
    source: str


@functools.cache
def text_corpus() -> TextCorpus:
    """Tiny Shakespeare where the data folder has it; otherwise 1.1 MB of the Python standard library's sources."""
    folder = data_folder("tinyshakespeare")
    if folder is not None:
        content, source = (folder / "input.txt").read_bytes(), "tiny Shakespeare"
    else:
        from regard.tasks.text_files import standard_library

        content = b"".join(standard_library().parts)[:1_100_000]
        source = "the Python standard library's sources, in place of tiny Shakespeare"
    ids = torch.from_numpy(np.frombuffer(content, dtype=np.uint8).astype(np.int64))
    held_out = len(ids) // 10
    return TextCorpus(ids[:-held_out], ids[-held_out:], source)


def windows(content: Tensor, *, seed: int, step: int, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets `(batch, length)` of one step, the targets one token later."""
    random = np.random.default_rng([seed, step])
    starts = torch.from_numpy(random.integers(0, len(content) - length, size=batch))
    rows = content[starts[:, None] + torch.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


def fit(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> float:
    """Train `model` in place; only parameters that ask for gradients are trained.

    Args:
        model: the network.
        batch: the data of a step, counted from 0.
        loss: the loss of the model on them.
        steps: number of updates.
        learning_rate: the peak.
        weight_decay: of AdamW.
        seed: of dropout.

    Returns:
        The mean loss of the last tenth of the steps.

    Raises:
        FloatingPointError: the loss is NaN or infinite; the step is named.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Recipe(steps=steps, learning_rate=1.0).rate)
    torch.manual_seed(seed)
    model.train()
    losses = []
    for step in range(steps):
        value = loss(model, batch(step))
        if not math.isfinite(losses_now := float(value.detach())):
            raise FloatingPointError(f"the loss became {losses_now} at step {step + 1}")
        losses.append(losses_now)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        schedule.step()
    model.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def fit_language(
    model: nn.Module,
    corpus: TextCorpus,
    *,
    steps: int,
    batch: int,
    length: int,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> float:
    """Train a language model (`tokens -> scores`) on windows of the corpus; returns `fit`'s loss in nats per byte."""

    def sample(step: int) -> tuple[Tensor, Tensor]:
        return windows(corpus.train, seed=seed, step=step, batch=batch, length=length)

    return fit(model, sample, next_token_loss, steps=steps, learning_rate=learning_rate, seed=seed)


def next_token_loss(model: nn.Module, tokens: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy in nats of targets given inputs."""
    inputs, targets = tokens
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def language_loss(
    model: nn.Module, corpus: TextCorpus, *, length: int, longest: int | None = None, total: int = 16_384
) -> float:
    """Nats per byte on the validation part, in windows of `length`.

    Args:
        model: the language model, put into eval mode.
        corpus: the text.
        length: bytes that are predicted in each window.
        longest: the longest window of a comparison over lengths: every length then predicts the same bytes, each
            window from its own start. None = `length`.
        total: bytes that are predicted, about.
    """
    model.eval()
    longest = longest or length
    content = corpus.validation
    stretches = max(1, min(total, len(content) - 1) // longest)
    stride = (len(content) - 1) // stretches
    starts = (torch.arange(stretches)[:, None] * stride + torch.arange(0, longest, length)).reshape(-1)
    rows = content[starts[:, None] + torch.arange(length + 1)]
    nats, at_once = 0.0, max(1, 4096 // length)
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once]
        nats += float(next_token_loss(model, (part[:, :-1], part[:, 1:]))) * part[:, 1:].numel()
    return nats / (len(rows) * length)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
