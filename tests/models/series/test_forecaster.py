"""Forecasts: units, windows, mixers, learning a sine, ill arguments."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from regard.models.series.forecaster import ForecasterConfig, SeriesForecaster

SMALL = ForecasterConfig(
    channels=3, context_len=11, horizon=7, dim=12, num_layers=2, num_heads=3, hidden=17, dropout=0.0
)
MIXERS = ["aaren", "softmax", "lightning", "linear"]


@pytest.mark.parametrize("mixer", MIXERS)
def test_forecasts_move_and_stretch_with_the_window(mixer: str) -> None:
    model = SeriesForecaster(replace(SMALL, mixer=mixer)).double().eval()
    series = 100 * torch.randn(2, 11, 3, dtype=torch.float64)
    scale = torch.tensor([3.0, 0.5, 10.0], dtype=torch.float64)
    moved = model(series * scale + 1000)
    assert moved.shape == (2, 7, 3)
    torch.testing.assert_close(moved, model(series) * scale + 1000, rtol=1e-6, atol=1e-2)


def test_a_channel_that_stands_still_stays_finite() -> None:
    model = SeriesForecaster(SMALL)
    series = torch.randn(2, 11, 3)
    series[..., 1] = 5.0
    forecast = model(series)
    forecast.sum().backward()
    assert torch.isfinite(forecast).all()
    assert float((forecast[..., 1] - 5).detach().abs().max()) < 0.1
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_every_time_step_and_channel_matters() -> None:
    model = SeriesForecaster(SMALL).eval()
    series = torch.randn(1, 11, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(series)[..., 0].square().sum(), series)
    assert (gradient.abs() > 0).all()


@pytest.mark.parametrize("mixer", ["aaren", "softmax"])
def test_learns_a_sine(mixer: str) -> None:
    config = ForecasterConfig(
        channels=1, context_len=24, horizon=6, dim=16, num_layers=1, num_heads=2, hidden=32, dropout=0.0, mixer=mixer
    )
    model = SeriesForecaster(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    steps, losses = torch.arange(30), []
    for _ in range(60):
        phases = 2 * math.pi * torch.rand(16, 1)
        rows = torch.sin(steps * 0.5 + phases)[..., None]
        loss = (model(rows[:, :24]) - rows[:, 24:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_parameters_differ_by_the_query_tokens() -> None:
    counts = {}
    for mixer in ("aaren", "softmax"):
        with torch.device("meta"):
            model = SeriesForecaster(replace(SeriesForecaster.VARIANTS["aaren_forecaster_96"].config, mixer=mixer))
        counts[mixer] = sum(parameter.numel() for parameter in model.parameters())
    assert counts["aaren"] - counts["softmax"] == 2 * 512


def test_own_layout_is_loaded_strictly() -> None:
    model, other = SeriesForecaster(SMALL), SeriesForecaster(SMALL)
    state = model.state_dict()
    other.load_reference(state)
    series = torch.randn(1, 11, 3)
    assert torch.equal(model.eval()(series), other.eval()(series))
    with pytest.raises(KeyError, match=r"missing keys: head\.bias"):
        other.load_reference({name: tensor for name, tensor in state.items() if name != "head.bias"})


@pytest.mark.parametrize("shape", [(2, 10, 3), (2, 11, 4), (11, 3)])
def test_ill_windows_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"(batch, 11, 3), got {shape}")):
        SeriesForecaster(SMALL)(torch.zeros(shape))


@pytest.mark.parametrize("changes", [{"horizon": 0}, {"channels": -1}])
def test_ill_configs_are_named(changes: dict[str, Any]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name} must be positive, got {value}"):
        replace(SMALL, **changes)


def test_compiles_without_breaks() -> None:
    model, series = SeriesForecaster(replace(SMALL, num_layers=1)).eval(), torch.randn(2, 11, 3)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(series), model(series))
