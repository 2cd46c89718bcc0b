"""What claims on long texts share: other attention in a trained network, losses after a prompt, a task of recall."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from regard.claims import _long_text
from regard.claims._listed_recall import ListedKeys, listed_accuracy
from regard.claims._long_decoding import decode_in_full, decode_recycled, decode_streaming, long_streams
from regard.claims._long_text import decoding_loss, entering, forward_loss, layers, long_rows, with_mixers
from regard.claims._recall import IGNORED
from regard.claims._recycled_networks import h2o_mixer, recycled_mixer, streaming_mixer
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.ops.recycled import Recycling
from regard.ops.streaming import Streaming


def network() -> Decoder:
    return Decoder(DecoderConfig(dim=32, num_layers=2, num_heads=2)).eval().requires_grad_(False)


@pytest.mark.parametrize("make", [recycled_mixer(60, 4), streaming_mixer(60), h2o_mixer(60)])
def test_other_attention_takes_over_the_projections(make: _long_text.MakeMixer) -> None:
    """With room for all keys every kind is full attention."""
    dense = network()
    model = with_mixers(dense, make)
    assert all(isinstance(block.mixer, SoftmaxAttention) for block in layers(dense))
    assert not any(isinstance(block.mixer, SoftmaxAttention) for block in layers(model))
    assert not model.training
    tokens = torch.randint(0, 256, (2, 41))
    torch.testing.assert_close(model(tokens), dense(tokens), rtol=1e-4, atol=1e-5)


def test_losses_at_once_and_byte_by_byte_are_the_cross_entropy() -> None:
    model, rows = network(), torch.randint(0, 256, (5, 41))
    nats = F.cross_entropy(model(rows[:, :-1])[:, 19:].flatten(0, 1), rows[:, 20:].flatten())
    states = []
    assert forward_loss(model, rows, prompt=20, at_once=2) == pytest.approx(float(nats), rel=1e-5)
    assert decoding_loss(model, rows, prompt=20, watch=states.append) == pytest.approx(float(nats), rel=1e-5)
    assert [int(state[0].position[0]) for state in states] == list(range(21, 41))


def test_what_enters_each_mixer() -> None:
    model, tokens, seen = network(), torch.randint(0, 256, (2, 13)), []
    for block in layers(model):
        block.mixer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = entering(model, tokens)
    assert len(found) == len(seen) == 2
    assert all(torch.equal(one, other) for one, other in zip(found, seen, strict=True))


def test_rows_are_spread_over_the_text() -> None:
    rows = long_rows(7, length=100)
    assert rows.shape == (7, 101)
    assert len({tuple(row) for row in rows.tolist()}) == 7
    assert not torch.equal(rows, long_rows(7, held_out=False, length=100))


def test_the_list_asks_for_pairs_of_the_text() -> None:
    task = ListedKeys(text=24, pairs=5, asked=3, keys=7, filler=4)
    tokens, targets = task.examples(batch=30, seed=0, step=1)
    assert tokens.shape == (30, 24 + 3 + 1 + 2)
    assert task.prompt == 28
    assert (tokens[:, 27] == task.vocab_size - 1).all()
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        pairs = {row[i]: row[i + 1] for i in range(0, 24, 2) if row[i] < 7}
        assert len(pairs) == 5
        assert all(7 <= value < 14 for value in pairs.values())
        assert wanted[:27] == [IGNORED] * 27
        assert wanted[27:] == [pairs[key] for key in row[24:27]]
        assert row[28:] == wanted[27:-1]


def test_accuracy_counts_what_is_said_from_what_was_said() -> None:
    task = ListedKeys(text=24, pairs=5, asked=3, keys=7, filler=4)
    config = DecoderConfig(vocab_size=task.vocab_size, dim=32, num_layers=1, num_heads=2)
    accuracy = listed_accuracy(Decoder(config).eval(), rows=16, task=task)
    assert 0 <= accuracy <= 1
    assert math.isclose(accuracy * 16 * 3, round(accuracy * 16 * 3), abs_tol=1e-9)


def test_decoding_after_a_long_prompt_gives_what_it_should() -> None:
    """With room for all keys the last token finds the same in all ways but the one by ranks without positions."""
    streams = long_streams(150, 4, torch.float32)
    with torch.no_grad():
        full = decode_in_full(streams, 4)
        recycled = decode_recycled(streams, 4, Recycling(top_k=200, stride=4))
        streaming = decode_streaming(streams, 4, Streaming(cache_size=200))
        for _ in range(2):
            torch.testing.assert_close(recycled(), full(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(streaming(), full(), rtol=1e-4, atol=1e-5)
