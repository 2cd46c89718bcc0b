"""Generating tokens: temperature, top-k and top-p, with a state of the model or by reading everything anew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.models.language.base import LanguageModel
from regard.tasks.task import device_of


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: divides the scores; 0 = always the likeliest token.
        top_k: only so many of the likeliest tokens; 0 = all.
        top_p: only the likeliest tokens that together have this probability; 1 = all.
        seed: of the random choices.

    Raises:
        ValueError: a number outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not math.isfinite(self.temperature):
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")


def next_token(scores: Float[Tensor, "batch vocab"], sampling: Sampling, random: torch.Generator) -> Tensor:
    """One token per row; the random numbers are drawn on the CPU, so that they are the same on every device."""
    if sampling.temperature == 0:
        return scores.argmax(dim=-1)
    scores = scores.float().cpu() / sampling.temperature
    if sampling.top_k:
        least = scores.topk(min(sampling.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -math.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # the token that crosses the border stays
        beyond = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        scores = scores.scatter(-1, order, ordered.masked_fill(beyond, -math.inf))
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=random)[:, 0]


def decodes(model: LanguageModel) -> bool:
    """Whether a model has a state to generate with; without one, everything is read anew for every token."""
    try:
        model.init_state(1, max_len=1)
    except ValueError:
        return False
    return True


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt: Int[Tensor, " tokens"],
    *,
    count: int,
    sampling: Sampling | None = None,
    with_state: bool = True,
) -> Iterator[int]:
    """Token ids that follow a prompt, one by one.

    Args:
        model: in eval mode.
        prompt: at least one id.
        count: how many tokens.
        sampling: how they are chosen.
        with_state: keep a state, of constant size for linear mechanisms; without one the whole text is read for every
            token, which gives the same tokens.

    Raises:
        ValueError: an empty prompt or an id that the model does not know.
    """
    if prompt.ndim != 1 or len(prompt) == 0:
        raise ValueError(f"the prompt must be at least one token, got shape {tuple(prompt.shape)}")
    if int(prompt.min()) < 0 or int(prompt.max()) >= model.vocab_size:
        raise ValueError(f"the prompt has an id outside 0 to {model.vocab_size - 1}")
    sampling = sampling or Sampling()
    random = torch.Generator().manual_seed(sampling.seed)
    tokens = prompt.to(device_of(model))[None]
    state = model.init_state(1, max_len=tokens.shape[1] + count) if with_state else None
    new = tokens
    for _ in range(count):
        if state is not None:
            scores, state = model.step(new, state)
        else:
            scores = model(tokens)
        new = next_token(scores[:, -1], sampling, random).to(tokens.device)[:, None]
        if state is None:
            tokens = torch.cat([tokens, new], dim=1)
        yield int(new)
