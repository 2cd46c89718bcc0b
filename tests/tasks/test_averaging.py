from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.tasks.averaging import Average
from regard.tasks.recipe import Recipe


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def shaken(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(4, 3))


def test_the_average_is_exponential_and_begins_low():
    model, recipe = network(), Recipe(ema=0.6)
    average = Average(model, recipe)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(9):
        shaken(model)
        average.update(model)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            expected[name] = (
                decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
            )
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert float(average.model[1].running_mean.abs().sum()) > 0
    assert int(average.model[1].num_batches_tracked) == 9


def test_an_average_goes_on_bit_for_bit():
    torch.manual_seed(0)
    model, recipe = network(), Recipe(ema=0.9)
    whole = Average(model, recipe)
    for _ in range(3):
        shaken(model)
        whole.update(model)
    halves = Average(model, recipe, step=3)
    halves.load({name: value.clone() for name, value in whole.model.state_dict().items()})
    for _ in range(3):
        shaken(model)
        whole.update(model)
        halves.update(model)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, halves.model.state_dict()[name])


def test_tied_weights_stay_tied():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    average = Average(nn.Sequential(first, second), Recipe(ema=0.9))
    assert average.model[0].weight is average.model[1].weight


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (10, 0.55), (10_000, 0.99)])
def test_the_decay_rises_to_what_is_asked_for(step, decay):
    assert Recipe(ema=0.99).average_decay(step) == pytest.approx(decay)
