"""The Routing Transformer's small networks: recall over a distance that local heads do not bridge, and text."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims._recall import IGNORED, VALIDATION_STEP, Examples
from regard.claims._training import SEEDS, fit, language_loss, text_corpus, windows
from regard.measure import one_thread
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.models.language.routing import RoutingTransformerConfig, RoutingTransformerLM

# --------------------------------------------------------------------------------------------------- recall


@dataclass(frozen=True)
class FarPairs:
    """Keys, each followed by its value; then noise; then the same keys in another order, whose values are asked.

    Which value belongs to which key is drawn anew for every row. Between a key and its question lie more tokens than
    there is noise.

    Args:
        keys: number of keys, each of which is there once.
        values: number of different values.
        noise: tokens between the two parts.
        noises: number of different noise tokens.
    """

    keys: int = 32
    values: int = 8
    noise: int = 384
    noises: int = 16

    @property
    def vocab_size(self) -> int:
        """Keys, values and noise."""
        return self.keys + self.values + self.noises

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return 4 * self.keys + self.noise

    def examples(self, *, batch: int, seed: int, step: int) -> Examples:
        """Rows of `length` tokens; values are asked at every key of the second part."""
        random = np.random.default_rng([seed, step])
        of_keys = self.keys + random.integers(0, self.values, size=(batch, self.keys))
        parts = []
        for _ in range(2):
            order = np.stack([random.permutation(self.keys) for _ in range(batch)])
            parts.append(np.stack((order, np.take_along_axis(of_keys, order, axis=1)), axis=2).reshape(batch, -1))
        noise = self.keys + self.values + random.integers(0, self.noises, size=(batch, self.noise))
        tokens = np.concatenate((parts[0], noise, parts[1]), axis=1)
        targets = np.full_like(tokens, IGNORED)
        asked = slice(2 * self.keys + self.noise, self.length, 2)
        targets[:, asked] = tokens[:, asked.start + 1 :: 2]
        return torch.from_numpy(tokens), torch.from_numpy(targets)


@dataclass(frozen=True)
class RecallRecipe:
    """How the recall networks are trained."""

    steps: int = 1000
    batch: int = 8
    learning_rate: float = 3e-3


TASK, RECALL = FarPairs(), RecallRecipe()
RECALL_CONFIG = RoutingTransformerConfig(
    vocab_size=TASK.vocab_size,
    dim=64,
    num_layers=2,
    num_heads=4,
    num_clusters=16,
    window_size=64,
    block_size=16,
    hidden=128,
    decay=0.99,
)
RECALL_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "local": lambda: RoutingTransformerLM(replace(RECALL_CONFIG, local_heads=4)),
    "routing": lambda: RoutingTransformerLM(RECALL_CONFIG),
    "full": lambda: Decoder(
        DecoderConfig(vocab_size=TASK.vocab_size, dim=64, num_layers=2, num_heads=4, hidden=192, mixer="softmax")
    ),
}


def scores_and_loss(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor | float]:
    """Scores, and what the network's paper adds to the task's loss."""
    return model.forward_with_loss(tokens) if isinstance(model, RoutingTransformerLM) else (model(tokens), 0.0)


def _recall_loss(model: nn.Module, data: Examples) -> Tensor:
    tokens, targets = data
    scores, more = scores_and_loss(model, tokens)
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED) + more


@functools.cache
def far_recall(network: str, recipe: RecallRecipe = RECALL, seed: int = 0) -> float:
    """Share of the asked values that a trained network gives rightly."""
    torch.manual_seed(seed)
    model = RECALL_NETWORKS[network]()
    with one_thread():
        fit(
            model,
            lambda step: TASK.examples(batch=recipe.batch, seed=seed, step=step),
            _recall_loss,
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            seed=seed,
        )
        return asked_accuracy(model, TASK.examples(batch=32, seed=seed, step=VALIDATION_STEP))


@torch.no_grad()
def asked_accuracy(model: nn.Module, data: Examples, *, at_once: int = 8) -> float:
    """Share of all asked values that are the likeliest token."""
    model.eval()
    right = asked = 0
    for tokens, targets in zip(*(part.split(at_once) for part in data), strict=True):
        wanted = targets != IGNORED
        right += int((model(tokens).argmax(dim=-1) == targets)[wanted].sum())
        asked += int(wanted.sum())
    return right / asked


# --------------------------------------------------------------------------------------------------- text


@dataclass(frozen=True)
class TextRecipe:
    """How the language models are trained."""

    steps: int = 120
    batch: int = 2
    length: int = 1024
    learning_rate: float = 3e-3
    evaluated: int = 65_536


TEXT = TextRecipe()
TEXT_CONFIG = RoutingTransformerConfig(
    dim=64, num_layers=2, num_heads=4, num_clusters=32, window_size=32, block_size=32, hidden=170, decay=0.99
)
TEXT_NETWORKS: dict[str, RoutingTransformerConfig] = {
    # the routing heads' keys are their queries, and what that saves goes to the perceptrons
    "routing": TEXT_CONFIG,
    "local": replace(TEXT_CONFIG, local_heads=4, hidden=160),
}


def parameters_of(config: RoutingTransformerConfig) -> int:
    """Number of parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in RoutingTransformerLM(config).parameters())


@functools.cache
def text_losses(network: str, recipe: TextRecipe = TEXT, seeds: tuple[int, ...] = SEEDS) -> tuple[float, ...]:
    """Nats per byte of held-out text after training, for every seed."""
    corpus, losses = text_corpus(), []

    def loss(model: nn.Module, data: Any) -> Tensor:
        inputs, targets = data
        scores, more = scores_and_loss(model, inputs)
        return F.cross_entropy(scores.flatten(0, 1), targets.flatten()) + more

    with one_thread():
        for seed in seeds:
            torch.manual_seed(seed)
            model = RoutingTransformerLM(TEXT_NETWORKS[network])
            draw = functools.partial(windows, corpus.train, seed=seed, batch=recipe.batch, length=recipe.length)
            fit(
                model,
                lambda step, draw=draw: draw(step=step),  # type: ignore[misc]
                loss,
                steps=recipe.steps,
                learning_rate=recipe.learning_rate,
                seed=seed,
            )
            losses.append(language_loss(model, corpus, length=recipe.length, total=recipe.evaluated))
    return tuple(losses)
