"""A memory as a context: rows at different phases, narrow types, gradients through steps."""

from __future__ import annotations

import pytest
import torch

from regard.layers.context_memory import ContextMemory
from regard.layers.neural_memory import NeuralMemory


def layer(segment_len: int = 4) -> ContextMemory:
    memory = NeuralMemory(
        12,
        num_heads=3,
        memory_depth=2,
        expansion=2,
        residual_norm=False,
        momentum=True,
        forgetting=True,
        convolution=True,
        max_surprise=10.0,
        chunk_size=segment_len,
        recompute=False,
    )
    return ContextMemory(12, num_heads=3, memory=memory, num_persistent=2, rope_base=100.0).double()


def test_rows_at_different_phases_are_rows_alone() -> None:
    ours = layer()
    x, after = torch.randn(3, 9, 12, dtype=torch.float64), torch.randn(3, 6, 12, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([9, 2, 0])[:, None]
    with torch.no_grad():
        _, _, state = ours.step(x, ours.init_state(3), mask=mask)
        attended, recalled, _ = ours.step(after, state, mask=None)
        for row, count in enumerate((9, 2, 0)):
            alone = torch.cat((x[row : row + 1, :count], after[row : row + 1]), dim=1)
            for got, expected in zip((attended, recalled), ours(alone), strict=True):
                torch.testing.assert_close(got[row], expected[0, :, count:])


def test_the_future_of_a_segment_stays_out() -> None:
    ours, x = layer(), torch.randn(1, 7, 12, dtype=torch.float64)
    changed = x.clone()
    changed[:, 6] += 10
    for got, expected in zip(ours(changed), ours(x), strict=True):
        torch.testing.assert_close(got[:, :, :6], expected[:, :, :6], rtol=0, atol=0)


def test_a_state_has_one_size() -> None:
    ours = layer()
    with torch.no_grad():
        sizes = {ours.step(torch.randn(1, n, 12).double(), ours.init_state(1), mask=None)[2].nbytes for n in (1, 4, 30)}
    assert len(sizes) == 1


def test_ill_sizes_are_named() -> None:
    memory = layer().memory
    with pytest.raises(ValueError, match="num_persistent must not be negative, got -1"):
        ContextMemory(12, num_heads=3, memory=memory, num_persistent=-1, rope_base=None)
