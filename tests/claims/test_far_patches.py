"""The task of far patches: what is asked has one answer, far away; and its network."""

from __future__ import annotations

import torch

from regard.claims import _far_patches
from regard.claims._far_patches import Reader, reading_accuracy, sample, trained_reader
from regard.mixers.spatial.bilevel_routing import BiLevelRoutingAttention


def test_every_question_has_one_answer_far_away() -> None:
    x, asking, answers = sample(3, 5, batch=7)
    side, width, values = _far_patches.PATCHES, _far_patches.KEY_WIDTH, _far_patches.VALUES
    assert x.shape == (7, 2 * width + values, 2 * side, 2 * side)
    for row in range(7):
        # a patch without its noise
        patches = torch.stack([x[row, :, ::2, ::2], x[row, :, 1::2, 1::2]]).mean(dim=0).round().flatten(1).T
        for patch, answer in zip(asking[row].tolist(), answers[row].tolist(), strict=True):
            key = patches[patch, :width]
            assert key.abs().sum() == width
            assert patches[patch, width:].abs().sum() == 0
            (found,) = ((patches[:, width : 2 * width] == key).all(dim=1)).nonzero()[:, 0].tolist()
            assert patches[found, 2 * width :].argmax() == answer
            assert max(abs(found // side - patch // side), abs(found % side - patch % side)) >= 2


def test_samples_depend_on_seed_and_step() -> None:
    first, again, other = sample(1, 2, batch=3), sample(1, 2, batch=3), sample(1, 3, batch=3)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_reader_is_trained_and_asked() -> None:
    def mixer(channels: int) -> BiLevelRoutingAttention:
        return BiLevelRoutingAttention(channels, num_heads=2, regions_per_side=4, topk=2)

    model = trained_reader(mixer, steps=2, batch=3, learning_rate=1e-3, seed=0)
    assert isinstance(model, Reader)
    assert 0 <= reading_accuracy(model, maps=8) <= 100
