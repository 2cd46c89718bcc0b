"""Two small tasks of recall: the value that belongs to a key, and one number hidden in noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims._training import fit

IGNORED = -100
VALIDATION_STEP = 1_000_000
"""The step whose examples no training run sees."""

Examples = tuple[Tensor, Tensor]
"""Tokens and targets, `(batch, tokens)`; where nothing is asked the target is -100, and the last one always is."""


@dataclass(frozen=True)
class Pairs:
    """Keys, each followed by its value; the last key has been seen before, and its value is asked.

    Which value belongs to which key is drawn anew for every row. In training the value is asked at every key that has
    been seen before.

    Args:
        keys: number of different keys; there are as many values.
        pairs: pairs in a row, the asked one included.
    """

    keys: int = 20
    pairs: int = 24

    @property
    def vocab_size(self) -> int:
        """Keys and values."""
        return 2 * self.keys

    def examples(self, *, batch: int, seed: int, step: int) -> Examples:
        """Rows of `2 * pairs - 1` tokens."""
        random = np.random.default_rng([seed, step])
        values = self.keys + np.stack([random.permutation(self.keys) for _ in range(batch)])
        keys = random.integers(0, self.keys, size=(batch, self.pairs))
        rows = np.arange(batch)
        keys[:, -1] = keys[rows, random.integers(0, self.pairs - 1, size=batch)]
        of_keys = np.take_along_axis(values, keys, axis=1)
        tokens = np.stack([keys, of_keys], axis=2).reshape(batch, 2 * self.pairs)[:, :-1]
        same = np.tril(keys[:, :, None] == keys[:, None, :], -1)
        targets = np.full_like(tokens, IGNORED)
        targets[:, ::2] = np.where(same.any(axis=2), of_keys, IGNORED)
        return torch.from_numpy(tokens), torch.from_numpy(targets)


@dataclass(frozen=True)
class Passkey:
    """A digit after its marker, somewhere in noise, and asked by a second marker at the end of the row.

    Args:
        noise: number of different noise tokens.
        digits: number of different digits.
    """

    noise: int = 16
    digits: int = 10

    @property
    def vocab_size(self) -> int:
        """Noise, digits and two markers."""
        return self.noise + self.digits + 2

    def examples(self, *, batch: int, length: int, seed: int, step: int) -> Examples:
        """Rows of `length` tokens."""
        random = np.random.default_rng([seed, step, length])
        tokens = random.integers(0, self.noise, size=(batch, length))
        places, rows = random.integers(0, length - 2, size=batch), np.arange(batch)
        hidden = self.noise + random.integers(0, self.digits, size=batch)
        tokens[rows, places] = self.noise + self.digits
        tokens[rows, places + 1] = hidden
        tokens[:, -1] = self.noise + self.digits + 1
        targets = np.full_like(tokens, IGNORED)
        targets[:, -1] = hidden
        return torch.from_numpy(tokens), torch.from_numpy(targets)


def fit_recall(
    model: nn.Module, examples: Callable[[int], Examples], *, steps: int, learning_rate: float, seed: int
) -> None:
    """Train a language model on what is asked alone."""

    def loss(network: nn.Module, data: Examples) -> Tensor:
        tokens, targets = data
        return F.cross_entropy(network(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    fit(model, examples, loss, steps=steps, learning_rate=learning_rate, seed=seed)


@torch.no_grad()
def recall_accuracy(model: nn.Module, data: Examples, *, at_once: int = 64) -> float:
    """Share of rows whose last question is answered rightly."""
    model.eval()
    tokens, targets = data
    right = sum(
        (model(some)[:, -1].argmax(dim=-1) == wanted[:, -1]).float().sum().item()
        for some, wanted in zip(tokens.split(at_once), targets.split(at_once), strict=True)
    )
    return right / len(tokens)
