"""What the claims of Recycled Attention measure on trained networks: weights that caches recover, and perplexities."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from regard.claims._long_decoding import Streams, in_chunks
from regard.claims._long_text import (
    LENGTH,
    decoding_loss,
    entering,
    forward_loss,
    layers,
    long_rows,
    long_text_model,
    with_mixers,
)
from regard.claims._training import fit_language, text_corpus
from regard.contract import SequenceMixer
from regard.layers.h2o_state import empty_h2o_state
from regard.layers.recycled_state import RecycledState, empty_recycled_state
from regard.measure import one_thread
from regard.mixers.sequence.h2o import H2OAttention
from regard.mixers.sequence.recycled import RecycledAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.mixers.sequence.streaming_llm import StreamingLLMAttention
from regard.models.language.decoder import Decoder
from regard.ops.recycled import Recycling
from regard.ops.softmax_attention import softmax_weights
from regard.ops.visibility import visible_keys

PROMPT = 512
MakeMixer = Callable[[SoftmaxAttention], SequenceMixer]


def recycled_mixer(top_k: int, stride: int | None, threshold: float | None = None) -> MakeMixer:
    """Recycled attention in the place of softmax attention."""

    def make(trained: SoftmaxAttention) -> SequenceMixer:
        return RecycledAttention(
            trained.dim,
            num_heads=trained.num_heads,
            num_kv_heads=trained.num_kv_heads,
            top_k=top_k,
            stride=stride,
            threshold=threshold,
            rope_base=trained.rope_base,
        )

    return make


def streaming_mixer(cache_size: int) -> MakeMixer:
    """StreamingLLM with 4 sinks in its place."""

    def make(trained: SoftmaxAttention) -> SequenceMixer:
        return StreamingLLMAttention(
            trained.dim, num_heads=trained.num_heads, cache_size=cache_size, rope_base=trained.rope_base
        )

    return make


def h2o_mixer(cache_size: int) -> MakeMixer:
    """H2O in its place."""

    def make(trained: SoftmaxAttention) -> SequenceMixer:
        return H2OAttention(
            trained.dim, num_heads=trained.num_heads, cache_size=cache_size, rope_base=trained.rope_base
        )

    return make


def empty_state(recycling: Recycling, q: Tensor, k: Tensor) -> RecycledState:
    """A state for these queries and keys; values are as wide."""
    return empty_recycled_state(
        q.shape[0],
        recycling,
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=k.shape[3],
        value_dim=k.shape[3],
        max_len=None,
        like=k,
    )


@functools.cache
def recovered_mass(top_k: int, stride: int) -> dict[str, float]:
    """Share of full attention's weights that falls on the keys of each cache, mean over layers, heads and bytes.

    Bytes after a prompt of 512, those of full steps left out for all.
    """
    model, rows = long_text_model(), long_rows(8)[:, :LENGTH]
    causal = visible_keys(LENGTH, LENGTH, causal=True, device=rows.device)
    found: dict[str, list[float]] = {"recycled": [], "streaming": [], "h2o": []}
    mixers = [block.mixer for block in layers(with_mixers(model, recycled_mixer(top_k, stride)))]
    with torch.no_grad(), one_thread():
        for mixer, x in zip(mixers, entering(model, rows), strict=True):
            assert isinstance(mixer, RecycledAttention)
            streams = mixer.project(x)
            weights = softmax_weights(streams[0], streams[1], visible=causal)
            for place, seen in _seen_keys(streams, mixer.recycling):
                for name, keys in seen.items():
                    found[name].append(float((weights[:, :, place] * keys).sum(dim=-1).mean()))
    return {name: sum(shares) / len(shares) for name, shares in found.items()}


def _seen_keys(streams: Streams, recycling: Recycling) -> list[tuple[int, dict[str, Tensor]]]:
    """For every recycled step its place, and which keys each cache shows to it."""
    q, k, _ = streams
    size, columns = recycling.top_k, torch.arange(k.shape[2])
    state, found = empty_state(recycling, q, k), []
    heavy = empty_h2o_state(
        k.shape[0],
        cache_size=size,
        num_kv_heads=k.shape[1],
        head_dim=k.shape[3],
        value_dim=k.shape[3],
        like=k,
    )
    chunks = [PROMPT] + [1] * (k.shape[2] - PROMPT)
    for pieces in in_chunks(streams, chunks):
        carried = heavy.carried()
        _, state = state.advance(*pieces, recycling)
        _, heavy = heavy.advance(*pieces)
        place = int(state.position[0]) - 1
        if pieces[0].shape[2] > 1 or bool(state.was_full[0]):
            continue
        recent = (columns > place - int(state.recent[0])) & (columns <= place)
        late = (columns < 4) | (columns > place - (size - 4) - 1)
        marks = torch.zeros(k.shape[:3], dtype=torch.bool)
        seen = {
            "recycled": marks.scatter(2, state.chosen, True) | recent,
            "streaming": late & (columns <= place),
            "h2o": marks.scatter(2, carried, True) | (columns == place),
        }
        found.append((place, seen))
    return found


TEXT_K, TEXT_STRIDE, TEXT_ROWS = 128, 8, 16


@functools.cache
def text_perplexities() -> dict[str, float]:
    """Per byte after a prompt of 512, of the dense network with each kind of attention."""
    dense, rows = long_text_model(), long_rows(TEXT_ROWS)
    with one_thread():
        losses = {
            "full": forward_loss(dense, rows, prompt=PROMPT),
            "recycled": decoding_loss(with_mixers(dense, recycled_mixer(TEXT_K, TEXT_STRIDE)), rows, prompt=PROMPT),
            "streaming": decoding_loss(with_mixers(dense, streaming_mixer(TEXT_K)), rows, prompt=PROMPT),
            "h2o": decoding_loss(with_mixers(dense, h2o_mixer(TEXT_K)), rows, prompt=PROMPT),
        }
    return {name: math.exp(loss) for name, loss in losses.items()}


@functools.cache
def dynamic_result() -> tuple[float, float, float]:
    """Threshold, perplexity and share of full steps of the schedule by similarity.

    The threshold is the highest of those tried, by bisection on the text that was learned, whose share of full steps is
    at most the fixed schedule's; if there it is above on the held-out text, it is lowered by steps of 0.01.
    """
    dense, wanted = long_text_model(), 1 / TEXT_STRIDE
    low, high = -1.0, 1.0
    with one_thread():
        for _ in range(7):
            middle = (low + high) / 2
            _, share = _dynamic(dense, middle, long_rows(4, held_out=False))
            low, high = (middle, high) if share <= wanted else (low, middle)
        threshold, rows = low, long_rows(TEXT_ROWS)
        loss, share = _dynamic(dense, threshold, rows)
        while share > wanted and threshold > -0.99:
            threshold -= 0.01
            loss, share = _dynamic(dense, threshold, rows)
    return threshold, math.exp(loss), share


def _dynamic(dense: Decoder, threshold: float, rows: Tensor) -> tuple[float, float]:
    full: list[float] = []

    def watch(state: tuple[object, ...]) -> None:
        full.extend(float(each.was_full.float().mean()) for each in state if isinstance(each, RecycledState))

    model = with_mixers(dense, recycled_mixer(TEXT_K, TEXT_STRIDE, threshold))
    loss = decoding_loss(model, rows, prompt=PROMPT, watch=watch)
    return loss, sum(full) / len(full)


LEARNED_K, LEARNED_STRIDE, LEARNED_STEPS, LEARNED_RATE = 32, 16, 200, 3e-4


@functools.cache
def continued(kind: str) -> Decoder:
    """The dense network after further training, with full attention or with the simulation of recycled attention."""
    dense = long_text_model()
    make = recycled_mixer(LEARNED_K, LEARNED_STRIDE)
    model = with_mixers(dense, make if kind == "recycled" else _as_before)
    model.requires_grad_(True)
    with one_thread():
        fit_language(
            model, text_corpus(), steps=LEARNED_STEPS, batch=4, length=LENGTH, learning_rate=LEARNED_RATE, seed=1
        )
    return model.eval().requires_grad_(False)


def _as_before(trained: SoftmaxAttention) -> SequenceMixer:
    return SoftmaxAttention(trained.dim, num_heads=trained.num_heads, causal=True, rope_base=trained.rope_base)
