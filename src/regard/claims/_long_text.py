"""A small dense language model on long windows of text, trained once per process, whose attention can be replaced.

Mechanisms that need no training are put into it as they are:

```python
model = with_mixers(long_text_model(), make)
```

Each layer's mixer is a `SoftmaxAttention` with `dim`, `num_heads` and `rope_base`, from which `make` builds what
replaces it; that takes over its `q_proj`, `k_proj`, `v_proj` and `o_proj`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.claims._training import fit_language, text_corpus
from regard.contract import SequenceMixer
from regard.measure import one_thread
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.models.language.stack import LanguageBlock

LENGTH = 1024
CONFIG = DecoderConfig(dim=128, num_layers=2, num_heads=4, rotary=True)
STEPS, BATCH, RATE = 300, 4, 3e-3
LONG_TEXT = (
    f"a dense network of 2 layers, 128 wide, 4 heads, rotary positions, trained on bytes of tiny Shakespeare, {STEPS} "
    f"steps of {BATCH} rows of {LENGTH:,} bytes, learning rate 3e-3"
)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

MakeMixer = Callable[[SoftmaxAttention], SequenceMixer]


@functools.cache
def long_text_model(seed: int = 0) -> Decoder:
    """The trained network, in eval mode and without gradients; it is shared, so do not change it."""
    torch.manual_seed(seed)
    model = Decoder(CONFIG)
    with one_thread():
        fit_language(model, text_corpus(), steps=STEPS, batch=BATCH, length=LENGTH, learning_rate=RATE, seed=seed)
    return model.eval().requires_grad_(False)


def layers(model: Decoder) -> list[LanguageBlock]:
    """The blocks of a network, each of which has its `mixer`."""
    return [block for block in model.blocks if isinstance(block, LanguageBlock)]


def with_mixers(model: Decoder, make: MakeMixer) -> Decoder:
    """A copy of a network whose mixers are others with the same trained projections.

    Args:
        model: with softmax attention; it is not changed.
        make: builds what replaces a layer's mixer; its own projections are overwritten.
    """
    made = copy.deepcopy(model)
    for block in layers(made):
        trained = block.mixer
        assert isinstance(trained, SoftmaxAttention)
        block.mixer = make(trained).to(trained.q_proj.weight)
        for name in PROJECTIONS:
            block.mixer.get_submodule(name).load_state_dict(trained.get_submodule(name).state_dict())
    return made.train(model.training)


def long_rows(rows: int, *, held_out: bool = True, length: int = LENGTH) -> Int[Tensor, "rows bytes"]:
    """Windows of `length + 1` bytes, evenly spread over the held-out text, or over the one that was learned."""
    corpus = text_corpus()
    content = corpus.validation if held_out else corpus.train
    starts = torch.arange(rows) * ((len(content) - length - 1) // rows)
    return content[starts[:, None] + torch.arange(length + 1)]


@torch.no_grad()
def forward_loss(model: nn.Module, rows: Int[Tensor, "rows bytes"], *, prompt: int, at_once: int = 4) -> float:
    """Nats per byte after the first `prompt` of each row, all at once."""
    total = 0.0
    for some in rows.split(at_once):
        scores = model(some[:, :-1])[:, prompt - 1 :]
        total += float(F.cross_entropy(scores.flatten(0, 1), some[:, prompt:].flatten(), reduction="sum"))
    return total / rows[:, prompt:].numel()


@torch.no_grad()
def decoding_loss(
    model: Decoder,
    rows: Int[Tensor, "rows bytes"],
    *,
    prompt: int,
    watch: Callable[[tuple[object, ...]], None] | None = None,
) -> float:
    """Nats per byte after a prompt, byte by byte, each of them given whatever was predicted.

    Args:
        model: the network.
        rows: what is read; the first `prompt` bytes at once.
        prompt: bytes of the prompt.
        watch: called with the layers' states after every single byte.
    """
    scores, state = model.step(rows[:, :prompt], model.init_state(len(rows), max_len=rows.shape[1]))
    total = F.cross_entropy(scores[:, -1], rows[:, prompt], reduction="sum")
    for place in range(prompt, rows.shape[1] - 1):
        scores, state = model.step(rows[:, place : place + 1], state)
        total = total + F.cross_entropy(scores[:, -1], rows[:, place + 1], reduction="sum")
        if watch is not None:
            watch(state)
    return float(total) / rows[:, prompt:].numel()


@torch.no_grad()
def entering(model: Decoder, tokens: Int[Tensor, "rows bytes"]) -> list[Float[Tensor, "rows bytes dim"]]:
    """What enters each layer's mixer."""
    x, found = model.embed(tokens, None, None, None), []
    for block in layers(model):
        found.append(block.mixer_norm(x))
        x = block(x, None, None)
    return found
