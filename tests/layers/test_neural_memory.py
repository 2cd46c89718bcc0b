"""The memory's layer: projections, rates, prefixes, and rows at different phases."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regard.layers.neural_memory import FILTER_WIDTH, NeuralMemory, shifted


def layer(**options: Any) -> NeuralMemory:
    defaults: dict[str, Any] = {
        "num_heads": 3,
        "memory_depth": 2,
        "expansion": 2,
        "residual_norm": False,
        "momentum": True,
        "forgetting": True,
        "convolution": True,
        "max_surprise": 10.0,
        "chunk_size": 4,
        "recompute": False,
    }
    return NeuralMemory(12, **{**defaults, **options}).double()


@pytest.mark.parametrize("options", [{}, {"convolution": False}, {"momentum": False}, {"residual_norm": True}])
def test_rows_at_different_phases_are_rows_alone(options: dict[str, Any]) -> None:
    memory, prefix = layer(**options), torch.randn(3, 12, dtype=torch.float64)
    x, after = torch.randn(3, 9, 12, dtype=torch.float64), torch.randn(3, 6, 12, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([9, 2, 0])[:, None]
    with torch.no_grad():
        start = memory.begin(prefix)[1].expand(3)
        _, state = memory.step(x, start, mask=mask)
        reads, _ = memory.step(after, state, mask=None)
        for row, count in enumerate((9, 2, 0)):
            alone = torch.cat((x[row : row + 1, :count], after[row : row + 1]), dim=1)
            expected = memory(alone, memory.begin(prefix)[1])
            torch.testing.assert_close(reads[row], expected[0, :, count:])
    assert state.position.tolist() == [9, 2, 0]


def test_queries_alone_are_the_queries_of_the_whole() -> None:
    memory, x = layer(), torch.randn(2, 9, 12, dtype=torch.float64)
    before = torch.randn(2, FILTER_WIDTH - 1, 36, dtype=torch.float64)
    q = memory.inputs(x, memory.project(x), before).q
    torch.testing.assert_close(memory.queries(memory.project_queries(x), before[..., :12]), q)
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(2, 3, 9, dtype=torch.float64))


def test_rates_are_sigmoids() -> None:
    memory, x = layer(), torch.randn(2, 5, 12, dtype=torch.float64)
    rates = memory.token_rates(x)
    raw = torch.sigmoid(memory.rates(x)).unflatten(2, (3, 3)).permute(2, 0, 3, 1)
    assert rates.log_keep is not None
    assert rates.log_momentum is not None
    torch.testing.assert_close(rates.step, raw[0])
    torch.testing.assert_close(rates.log_keep.exp(), raw[1])
    torch.testing.assert_close(rates.log_momentum.exp(), raw[2])


def test_the_first_memory_is_shared_by_all_inputs_and_learned() -> None:
    memory = layer()
    first = memory.first_memory(2)
    assert first.start is first.weights
    loss = memory(torch.randn(2, 5, 12, dtype=torch.float64), memory.begin()[1]).square().sum()
    for gradient in torch.autograd.grad(loss, [*memory.weights]):
        assert float(gradient.abs().max()) > 0


def test_what_the_convolution_still_sees() -> None:
    before, new = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    got = shifted(before, new, torch.tensor([4, 1]))
    torch.testing.assert_close(got[0], new[0, 1:])
    torch.testing.assert_close(got[1], torch.cat((before[1, 1:], new[1, :1])))
