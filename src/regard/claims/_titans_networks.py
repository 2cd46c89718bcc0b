"""What the claims of Titans train: recall beyond a window, a language model, a needle, and a forecaster."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims._recall import IGNORED, VALIDATION_STEP, Examples, Passkey, fit_recall, recall_accuracy
from regard.claims._training import data_folder, fit, fit_language, language_loss, text_corpus
from regard.measure import one_thread
from regard.mixers.sequence.sliding_window import SlidingWindowAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.mixers.sequence.titans import TitansLMM
from regard.models.language.titans import TitansConfig, TitansLM

Kind = Literal["mac", "mag", "mal", "lmm", "linear memory", "no momentum", "no forgetting", "window"]
_CHANGES: dict[str, dict[str, object]] = {
    "linear memory": {"memory_depth": 1},
    "no momentum": {"momentum": False},
    "no forgetting": {"forgetting": False},
}


def network(kind: Kind, config: TitansConfig, *, seed: int) -> TitansLM:
    """A Titans network; "window" has sliding-window attention in the place of every mixer, and wider perceptrons.

    The perceptrons of "window" are widened until it has at least as many parameters as the largest variant.
    """
    torch.manual_seed(seed)
    if kind != "window":
        variant = kind if kind in ("mac", "mag", "mal") else "lmm"
        return TitansLM(replace(config, variant=variant, **_CHANGES.get(kind, {})))  # type: ignore[arg-type]
    wanted = max(_size(TitansLM(replace(config, variant=variant))) for variant in ("mac", "mag", "mal"))
    spare = wanted - _size(_window_network(config))
    hidden = (8 * config.dim // 3) + -(-max(0, spare) // (3 * config.dim * config.num_layers))
    torch.manual_seed(seed)
    return _window_network(replace(config, hidden=hidden))


def _window_network(config: TitansConfig) -> TitansLM:
    made = TitansLM(config)
    for block in made.blocks:
        block.mixer = SlidingWindowAttention(
            config.dim, num_heads=config.num_heads, causal=True, window_size=config.window, rope_base=config.rope_base
        )
    return made


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --------------------------------------------------------------------------------------------------- recall


@dataclass(frozen=True)
class EarlierPairs:
    """Keys, each followed by its value; then noise, longer than the window; then the keys again, in another order.

    Args:
        pairs: pairs in a row, with different keys.
        keys: number of different keys; there are as many values.
        gap: noise tokens between the pairs and the questions.
        noise: number of different noise tokens.
    """

    pairs: int = 4
    keys: int = 8
    gap: int = 40
    noise: int = 16

    @property
    def vocab_size(self) -> int:
        """Keys, values and noise."""
        return 2 * self.keys + self.noise

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return 3 * self.pairs + self.gap

    def examples(self, *, batch: int, seed: int, step: int) -> Examples:
        """Rows, and the values that are asked at their ends."""
        random = np.random.default_rng([seed, step])
        keys = np.stack([random.permutation(self.keys)[: self.pairs] for _ in range(batch)])
        values = self.keys + random.integers(0, self.keys, size=(batch, self.pairs))
        order = np.stack([random.permutation(self.pairs) for _ in range(batch)])
        noise = 2 * self.keys + random.integers(0, self.noise, size=(batch, self.gap))
        stored = np.stack([keys, values], axis=2).reshape(batch, 2 * self.pairs)
        asked = np.take_along_axis(keys, order, axis=1)
        tokens = np.concatenate([stored, noise, asked], axis=1)
        targets = np.full_like(tokens, IGNORED)
        targets[:, -self.pairs :] = np.take_along_axis(values, order, axis=1)
        return torch.from_numpy(tokens), torch.from_numpy(targets)


PAIRS = EarlierPairs()
RECALL = TitansConfig(
    vocab_size=PAIRS.vocab_size, dim=64, num_layers=1, num_heads=2, window=32, chunk_size=32, num_persistent=2
)
RECALL_STEPS, RECALL_BATCH, RECALL_RATE = 300, 16, 1e-2
RECALL_TEXT = (
    "4 of 8 keys with their values, 40 tokens of noise, and the 4 questions (52 tokens; window 32, so that no question "
    "sees a pair), one layer, width 64, 2 heads, 300 steps of 16 rows, learning rate 1e-2, over 256 rows"
)
CHANCE = 1 / PAIRS.keys


@functools.cache
def recall_result(kind: Kind, seed: int) -> tuple[float, float]:
    """Accuracy and loss over all questions of 256 rows that training does not see."""
    made = network(kind, RECALL, seed=seed)
    with one_thread():
        fit_recall(
            made,
            lambda step: PAIRS.examples(batch=RECALL_BATCH, seed=seed, step=step),
            steps=RECALL_STEPS,
            learning_rate=RECALL_RATE,
            seed=seed,
        )
        tokens, targets = PAIRS.examples(batch=256, seed=1000, step=VALIDATION_STEP)
        with torch.no_grad():
            scores = made.eval()(tokens)[:, -PAIRS.pairs :]
    wanted = targets[:, -PAIRS.pairs :]
    accuracy = (scores.argmax(dim=-1) == wanted).float().mean()
    return float(accuracy), float(F.cross_entropy(scores.flatten(0, 1), wanted.flatten()))


# --------------------------------------------------------------------------------------------------- language


LANGUAGE = TitansConfig(dim=64, num_layers=2, num_heads=2, window=16, chunk_size=32)
LANGUAGE_STEPS, LANGUAGE_BATCH, LANGUAGE_LENGTH = 250, 8, 128
LANGUAGE_TEXT = (
    "bytes of tiny Shakespeare, 2 layers, width 64, 2 heads, window 16, 250 steps of 8 rows of 128 tokens, "
    "learning rate 3e-3"
)


@functools.cache
def language_result(kind: Kind) -> tuple[float, int]:
    """Nats per byte on held-out text, and the number of parameters."""
    made, corpus = network(kind, LANGUAGE, seed=0), text_corpus()
    with one_thread():
        fit_language(made, corpus, steps=LANGUAGE_STEPS, batch=LANGUAGE_BATCH, length=LANGUAGE_LENGTH)
        loss = language_loss(made, corpus, length=LANGUAGE_LENGTH)
    return loss, _size(made)


# --------------------------------------------------------------------------------------------------- needle


NEEDLE = Passkey()
NEEDLE_LENGTHS = (64, 256, 1024)
NEEDLE_CONFIG = TitansConfig(
    vocab_size=NEEDLE.vocab_size, dim=64, num_layers=2, num_heads=2, window=32, num_persistent=2
)
NEEDLE_STEPS, NEEDLE_BATCH, NEEDLE_RATE = 300, 16, 5e-3
NEEDLE_TEXT = (
    "a digit after its marker in noise, asked at the end; 2 layers, width 64, 2 heads, segments of 32, trained at 64 "
    "tokens for 300 steps of 16 rows (learning rate 5e-3), read at 64, 256 and 1,024, over 128 rows"
)


class PositionedEmbedding(nn.Embedding):
    """Token ids and learned absolute positions."""

    def __init__(self, vocab_size: int, dim: int, *, longest: int) -> None:
        super().__init__(vocab_size, dim)
        self.places = nn.Embedding(longest, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """The sum of both."""
        return super().forward(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))


@functools.cache
def needle_result(kind: Literal["mac", "full attention"]) -> dict[int, float]:
    """Accuracy at every length."""
    made = network("mac", NEEDLE_CONFIG, seed=0)
    if kind == "full attention":
        torch.manual_seed(0)
        made.embedding = PositionedEmbedding(NEEDLE.vocab_size, NEEDLE_CONFIG.dim, longest=max(NEEDLE_LENGTHS))
        for block in made.blocks:
            block.mixer = SoftmaxAttention(NEEDLE_CONFIG.dim, num_heads=NEEDLE_CONFIG.num_heads, causal=True)
    with one_thread():
        fit_recall(
            made,
            lambda step: NEEDLE.examples(batch=NEEDLE_BATCH, length=NEEDLE_LENGTHS[0], seed=0, step=step),
            steps=NEEDLE_STEPS,
            learning_rate=NEEDLE_RATE,
            seed=0,
        )
        return {
            length: recall_accuracy(
                made, NEEDLE.examples(batch=128, length=length, seed=1000, step=VALIDATION_STEP), at_once=32
            )
            for length in NEEDLE_LENGTHS
        }


# --------------------------------------------------------------------------------------------------- forecasting


PAST, FUTURE, PATCH, CHANNELS = 96, 96, 8, 7
TRAIN_HOURS, VALIDATION_HOURS, TEST_HOURS = 12 * 30 * 24, 4 * 30 * 24, 4 * 30 * 24
FORECAST_STEPS, FORECAST_BATCH, FORECAST_RATE = 250, 16, 2e-3
FORECAST_TEXT = (
    "ETTh1, 12/4/4 months, standardised on the training part, every channel by itself, patches of 8 hours, width 32, "
    "2 heads, one layer, chunks of 4 patches; 250 steps of 16 windows of 7 channels, learning rate 2e-3"
)


def etth1_file() -> Path | None:
    """ETTh1's CSV, where the data folder has it."""
    folder = data_folder("ett")
    path = None if folder is None else folder / "ETTh1.csv"
    return path if path is not None and path.is_file() else None


@functools.cache
def etth1() -> tuple[Tensor, Tensor]:
    """Training hours, and test hours with the 96 before them, standardised on the former; `(hours, channels)`.

    Raises:
        FileNotFoundError: the data folder does not have it.
    """
    path = etth1_file()
    if path is None:
        raise FileNotFoundError("ETTh1.csv is not in the data folder (REGARD_DATA, or ../shared/data)")
    with path.open(newline="") as lines:
        rows = list(csv.reader(lines))[1:]
    values = torch.tensor([[float(value) for value in row[1:]] for row in rows])
    train = values[:TRAIN_HOURS]
    values = (values - train.mean(dim=0)) / train.std(dim=0, correction=0)
    test = TRAIN_HOURS + VALIDATION_HOURS
    return values[:TRAIN_HOURS], values[test - PAST : test + TEST_HOURS]


class PatchForecaster(nn.Module):
    """Linear patches of one channel, a memory over them, and a linear forecast, relative to the last value."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.patches = nn.Linear(PATCH, dim)
        self.norm = nn.LayerNorm(dim)
        self.mixer = TitansLMM(dim, num_heads=2, chunk_size=4, num_persistent=2)
        self.forecast = nn.Linear(dim * (PAST // PATCH), FUTURE)

    def forward(self, past: Tensor) -> Tensor:
        """`(rows, 96)` to `(rows, 96)`."""
        last = past[:, -1:]
        x = self.patches((past - last).unflatten(1, (-1, PATCH)))
        return self.forecast((x + self.mixer(self.norm(x))).flatten(1)) + last


class PerceptronForecaster(nn.Module):
    """A perceptron with one hidden layer, relative to the last value."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(PAST, hidden), nn.GELU(), nn.Linear(hidden, FUTURE))

    def forward(self, past: Tensor) -> Tensor:
        """`(rows, 96)` to `(rows, 96)`."""
        last = past[:, -1:]
        return self.layers(past - last) + last


def _windows(hours: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Pasts and futures of every channel, `(windows * channels, 96)`."""
    rows = hours[starts[:, None] + torch.arange(PAST + FUTURE)].transpose(1, 2).flatten(0, 1)
    return rows[:, :PAST], rows[:, PAST:]


@functools.cache
def forecast_result(kind: Literal["memory", "perceptron"], seed: int) -> float:
    """Mean squared error over all test windows."""
    train, test = etth1()
    torch.manual_seed(seed)
    made = PatchForecaster() if kind == "memory" else PerceptronForecaster()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([seed, step])
        return _windows(train, torch.from_numpy(random.integers(0, len(train) - PAST - FUTURE, size=FORECAST_BATCH)))

    def loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(data[0]), data[1])

    with one_thread():
        fit(made, batch, loss, steps=FORECAST_STEPS, learning_rate=FORECAST_RATE, seed=seed)
        total, starts = 0.0, torch.arange(len(test) - PAST - FUTURE + 1)
        with torch.no_grad():
            for some in starts.split(128):
                past, future = _windows(test, some)
                total += float((made(past) - future).square().mean()) * len(some)
    return total / len(starts)
