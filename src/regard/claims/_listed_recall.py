"""Multi-key recall in a long text: pairs of a key and its value in filler, a list of keys, and their values in a row.

The network that answers is small and dense; its attention can be replaced afterwards.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regard.claims._recall import IGNORED, VALIDATION_STEP, Examples, fit_recall
from regard.measure import one_thread
from regard.models.language.decoder import Decoder, DecoderConfig


@dataclass(frozen=True)
class ListedKeys:
    """A text with pairs, then a list of some of the keys, a mark, and the values of these in the list's order.

    Args:
        text: tokens before the list, pairs among them; even.
        pairs: pairs in the text, with different keys.
        asked: keys in the list.
        keys: number of different keys; there are as many values.
        filler: number of different filler tokens.
    """

    text: int = 512
    pairs: int = 32
    asked: int = 16
    keys: int = 64
    filler: int = 32

    @property
    def vocab_size(self) -> int:
        """Keys, values, filler and the mark."""
        return 2 * self.keys + self.filler + 1

    @property
    def prompt(self) -> int:
        """Tokens up to the mark, from which on values are said."""
        return self.text + self.asked + 1

    def examples(self, *, batch: int, seed: int, step: int) -> Examples:
        """Rows without the last value, and the values at the places where each is to be said."""
        random = np.random.default_rng([seed, step, self.text])
        rows = np.arange(batch)[:, None]
        tokens = 2 * self.keys + random.integers(0, self.filler, size=(batch, self.text // 2, 2))
        cells = random.permuted(np.tile(np.arange(self.text // 2), (batch, 1)), axis=1)[:, : self.pairs]
        keys = random.permuted(np.tile(np.arange(self.keys), (batch, 1)), axis=1)[:, : self.pairs]
        values = self.keys + random.integers(0, self.keys, size=(batch, self.pairs))
        tokens[rows, cells] = np.stack([keys, values], axis=2)
        # the pairs are in no order, so the first of them are a random choice
        said = values[:, : self.asked]
        mark = np.full((batch, 1), self.vocab_size - 1)
        parts = [tokens.reshape(batch, self.text), keys[:, : self.asked], mark, said[:, :-1]]
        whole = np.concatenate(parts, axis=1)
        targets = np.full_like(whole, IGNORED)
        targets[:, -self.asked :] = said
        return torch.from_numpy(whole), torch.from_numpy(targets)


TASK = ListedKeys()
STAGES = (
    (ListedKeys(text=64, pairs=16), 32, 700),
    (ListedKeys(text=128, pairs=32), 16, 250),
    (TASK, 8, 150),
)
"""Text, rows of a step and number of steps, one after the other."""
RATE = 3e-3
RECALL_TEXT = (
    f"{TASK.pairs} of {TASK.keys} keys with one of {TASK.keys} values each in a text of {TASK.text} tokens, then "
    f"{TASK.asked} of these keys and their values in that order, over 64 rows; a dense network of 2 layers, 128 wide, "
    "4 heads, rotary positions, learned from texts of 64, 128 and 512 tokens"
)


@functools.cache
def listed_recall_model(seed: int = 0) -> Decoder:
    """A dense network of 2 layers, 128 wide, that has learned to recall from ever longer texts; do not change it."""
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(vocab_size=TASK.vocab_size, dim=128, num_layers=2, num_heads=4))
    with one_thread():
        for task, batch, steps in STAGES:
            fit_recall(
                model,
                functools.partial(_batch, task, batch, seed),
                steps=steps,
                learning_rate=RATE,
                seed=seed,
            )
    return model.eval().requires_grad_(False)


def _batch(task: ListedKeys, batch: int, seed: int, step: int) -> Examples:
    return task.examples(batch=batch, seed=seed, step=step)


@torch.no_grad()
def listed_accuracy(model: Decoder, *, rows: int = 64, task: ListedKeys = TASK) -> float:
    """Share of values that a network says rightly, greedily, each from what it has said before."""
    tokens, targets = task.examples(batch=rows, seed=1000, step=VALIDATION_STEP)
    wanted = targets[:, -task.asked :]
    scores, state = model.step(tokens[:, : task.prompt], model.init_state(rows, max_len=tokens.shape[1]))
    said: list[Tensor] = [scores[:, -1].argmax(dim=-1)]
    while len(said) < task.asked:
        scores, state = model.step(said[-1][:, None], state)
        said.append(scores[:, -1].argmax(dim=-1))
    return float((torch.stack(said, dim=1) == wanted).double().mean())
