"""What RCMHA's claims compare: segments that follow each other, and runs that are reproducible."""

from __future__ import annotations

import pytest
import torch

from regard.claims._relative_networks import MemoryRecipe, segments, small_network, validation_accuracy
from regard.models.language.rcmha import ATTENTIONS

TINY = MemoryRecipe(steps=3, batch=2, length=8, mem_len=8, evaluated=64)


def test_segments_follow_each_other_in_every_row() -> None:
    content = torch.arange(1000)
    first, targets = segments(content, batch=4, length=10, step=3)
    second, _ = segments(content, batch=4, length=10, step=4)
    assert torch.equal(targets, first + 1)
    assert torch.equal(second[:, 0], first[:, -1] + 1)
    assert not torch.equal(first, segments(content, batch=4, length=10, step=3, seed=1)[0])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_runs_are_reproducible(attention: str) -> None:
    validation_accuracy.cache_clear()
    first = validation_accuracy(attention, 0, TINY)
    validation_accuracy.cache_clear()
    assert validation_accuracy(attention, 0, TINY) == first
    assert 0 <= first < 1


def test_networks_differ_in_their_attention_alone() -> None:
    sizes = {
        name: sum(parameter.numel() for parameter in small_network(name, TINY).parameters()) for name in ATTENTIONS
    }
    # filters of heads' 16 channels are shared, those of 64 channels are not; the others have biases of projections
    assert sizes["rcmha"] - sizes["rmha"] == 2 * 3 * 16 * 4
    assert sizes["mdha"] - sizes["softmax"] == 2 * 3 * 64 * 4
