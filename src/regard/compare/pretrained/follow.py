"""Following a text: a prompt read and what comes after it decoded token by token, timed beside the model's own way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from regard.compare.pretrained.contestants import Contestant
from regard.compare.pretrained.passages import Hidden
from regard.compare.pretrained.settings import TOKENS_PER_TURN, YARDSTICK
from regard.integrations.transformers import new_cache
from regard.integrations.transformers.attention import PREFIX
from regard.integrations.transformers.pretrained import cache_bytes, read_prompt
from regard.measure import MeasurementError, peak_bytes

Item = TypeVar("Item")

WARMUP_TOKENS = 16


class Side:
    """A model under one attention, with an empty cache whenever one is wanted.

    Args:
        model: a causal language model of transformers.
        contestant: the attention.
    """

    def __init__(self, model: Any, contestant: Contestant) -> None:
        self.model = model
        self.contestant = contestant
        own = contestant.mechanism == YARDSTICK
        self._implementation = YARDSTICK if own else PREFIX + contestant.mechanism

    def enter(self) -> None:
        """Let the model attend this way from now on."""
        self.model.set_attn_implementation(self._implementation)

    def new_cache(self) -> Cache:
        """An empty cache; enters as well.

        Raises:
            ValueError: the mechanism does not fit the model.
        """
        if self.contestant.mechanism == YARDSTICK:
            self.enter()
            return DynamicCache(config=self.model.config)
        return new_cache(self.model, self.contestant.mechanism, **self.contestant.options)


@dataclass
class Followed:
    """What following texts gave.

    Args:
        prefill_s: seconds of each prompt.
        peak_bytes: memory that reading each prompt took beyond what was held before; None where it cannot be told.
        turn_s: seconds of each turn of decoding.
        losses: negative log-likelihood of every scored token, in nats.
        cache_bytes: what the cache held after the last prompt.
    """

    prefill_s: list[float] = field(default_factory=list)
    peak_bytes: list[int | None] = field(default_factory=list)
    turn_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    cache_bytes: int = 0

    @property
    def s_per_token(self) -> float:
        """Median time of one decoded token."""
        return median(self.turn_s) / TOKENS_PER_TURN

    @property
    def loss(self) -> float:
        """Mean loss per token.

        Raises:
            ValueError: it is not finite.
        """
        mean = sum(self.losses) / len(self.losses)
        if not math.isfinite(mean):
            raise ValueError("the model's probabilities are not finite")
        return mean

    @property
    def peak(self) -> int | None:
        """The largest of the prompts' peaks."""
        return max((peak for peak in self.peak_bytes if peak), default=None)


class _Stream:
    """One side's decoding of one text.

    Args:
        side: how to attend.
        targets: the tokens after the prompt.
        found: takes the results.
    """

    def __init__(self, side: Side, targets: Int[Tensor, " tokens"], found: Followed) -> None:
        self.side, self._targets, self._found = side, targets, found
        self._scores: Tensor
        self._cache = side.new_cache()
        self._next = 0

    def read(self, prompt: Int[Tensor, " tokens"]) -> None:
        """Read the prompt, timed, with its peak memory."""

        def reading() -> None:
            begin = time.perf_counter()
            self._scores = read_prompt(self.side.model, prompt, self._cache)
            self._found.prefill_s.append(time.perf_counter() - begin)

        try:
            peak: int | None = peak_bytes(reading, device=prompt.device) or None
        except MeasurementError:
            peak = None
            reading()
        self._found.peak_bytes.append(peak)
        self._found.cache_bytes = cache_bytes(self._cache)
        self._score()

    def turn(self) -> None:
        """Decode a few tokens, timed when all of a turn's are there."""
        self.side.enter()
        begin, decoded = time.perf_counter(), 0
        rows = []
        while decoded < TOKENS_PER_TURN and self._next < len(self._targets):
            token = self._targets[self._next - 1].view(1, 1)
            rows.append(self.side.model(input_ids=token, past_key_values=self._cache, use_cache=True).logits[:, -1])
            self._next, decoded = self._next + 1, decoded + 1
        if decoded == TOKENS_PER_TURN:
            self._found.turn_s.append(time.perf_counter() - begin)
        for place, scores in enumerate(rows, start=self._next - decoded):
            self._loss(scores, place)

    def _score(self) -> None:
        self._loss(self._scores, 0)
        self._next = 1

    def _loss(self, scores: Tensor, place: int) -> None:
        loss = torch.nn.functional.cross_entropy(scores.float(), self._targets[place : place + 1])
        self._found.losses.append(float(loss))

    @property
    def done(self) -> bool:
        """Whether all targets have been scored."""
        return self._next >= len(self._targets)


@torch.no_grad()
def follow(
    sides: Mapping[str, Side],
    texts: Int[Tensor, "passages tokens"],
    *,
    prompt: int,
    scored: int,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, Followed]:
    """Let every side read the same prompts and decode what follows, taking turns.

    Args:
        sides: by name.
        texts: of which the last `scored` tokens are decoded, after the `prompt` tokens before them.
        prompt: tokens that are read at once.
        scored: tokens that are decoded.
        on_step: called now and then; may raise to stop.
    """
    found = {name: Followed() for name in sides}
    for number, text in enumerate(texts):
        begin = len(text) - scored - prompt
        read, targets = text[begin : begin + prompt], text[begin + prompt :]
        streams = []
        for name in _rotated(list(sides), number):
            stream = _Stream(sides[name], targets, found[name])
            stream.read(read)
            streams.append(stream)
            on_step()
        while not all(stream.done for stream in streams):
            streams = _rotated(streams, 1)
            for stream in streams:
                stream.turn()
            on_step()
    return found


def _rotated(items: list[Item], by: int) -> list[Item]:
    by %= len(items)
    return items[by:] + items[:by]


@torch.no_grad()
def warm_up(side: Side, text: Int[Tensor, " tokens"]) -> None:
    """Read a little, so that one-time costs fall on nobody's time."""
    cache = side.new_cache()
    read_prompt(side.model, text[:WARMUP_TOKENS], cache)
    side.model(input_ids=text[None, :1], past_key_values=cache, use_cache=True)


@torch.no_grad()
def share_found(side: Side, hidden: Sequence[Hidden], *, on_step: Callable[[], None] = lambda: None) -> float | None:
    """The share of the hidden numbers' tokens that are the likeliest, each after the true ones before it.

    Args:
        side: how to attend.
        hidden: prompts with numbers; None is returned where there are none.
        on_step: called after each; may raise to stop.
    """
    right, total = 0, 0
    for each in hidden:
        cache = side.new_cache()
        scores = read_prompt(side.model, each.prompt, cache)
        for place, token in enumerate(each.answer):
            right += int(scores.argmax(dim=-1)) == int(token)
            total += 1
            if place + 1 < len(each.answer):
                step = side.model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True)
                scores = step.logits[:, -1]
        on_step()
    return right / total if total else None
