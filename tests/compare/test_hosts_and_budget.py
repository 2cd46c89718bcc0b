from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.compare.budget import BudgetError, ImageShape, SeriesShape, build_host, fit
from regard.compare.hosts import LanguageHost, ResidualHost, SeriesHost, VisionHost
from regard.compare.mechanisms import fitting
from regard.registry import systems

DIGITS = ImageShape(channels=1, size=8, classes=10)
PHOTOS = ImageShape(channels=3, size=32, classes=5)
SERIES = SeriesShape(channels=3, horizon=5)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("shape", [None, SERIES], ids=["text", "series"])
@pytest.mark.parametrize("name", fitting("text"))
def test_every_causal_host_meets_the_budget(settings, name, shape):
    race = settings(task="series" if shape else "text", dim=48, num_heads=4)
    found = fit(name, race, shape)
    host = build_host(name, race, shape, found.knob)
    assert isinstance(host, SeriesHost if shape else LanguageHost)
    assert parameters(host) == found.params
    assert sum(parameters(mixer) for mixer in host.mixers()) == found.mixer_params
    assert abs(found.params / found.budget - 1) <= 0.02
    assert found.budget == fit("softmax", race, shape).params
    assert fit("softmax", race, shape).knob == 4 * 48


@pytest.mark.parametrize("shape", [DIGITS, pytest.param(PHOTOS, marks=pytest.mark.slow)])
def test_every_image_host_meets_one_budget(settings, outsiders, shape):
    race = settings(task="image", dim=48, num_heads=4)
    budget = fit("softmax", race, shape).budget
    for name in fitting("image"):
        found = fit(name, race, shape)
        host = build_host(name, race, shape, found.knob)
        feature = systems()[name].kind == "feature"
        assert isinstance(host, ResidualHost if feature else VisionHost)
        assert parameters(host) == found.params
        assert found.budget == budget
        assert abs(found.params / budget - 1) <= 0.02


@pytest.mark.parametrize(("dim", "num_layers"), [(32, 2), (64, 1), (64, 2), (64, 4), (256, 2)])
def test_the_residual_host_meets_budgets_of_many_sizes(settings, outsiders, dim, num_layers):
    race = settings(task="image", dim=dim, num_heads=4, num_layers=num_layers)
    for shape in (DIGITS, PHOTOS):
        assert abs(fit("toy_gate", race, shape).deviation) <= 0.015


def test_a_mechanism_that_outweighs_the_budget_is_refused(settings, monkeypatch):
    heavy = type("Heavy", (nn.Linear,), {})
    monkeypatch.setattr(
        "regard.compare.budget.mixer_by_name",
        lambda name, *, dim, **_: nn.Linear(dim, dim) if name == "softmax" else heavy(dim, 99 * dim),
    )
    with pytest.raises(BudgetError, match=r"no width brings its network to the budget of .* within 2%"):
        fit("linear", settings(), None)


def test_the_future_has_no_influence_on_a_language_host(settings):
    for name in fitting("text"):
        host = build_host(name, settings(), None, 10).eval()
        tokens = torch.randint(256, (2, 13))
        changed = tokens.clone()
        changed[:, 9:] = (changed[:, 9:] + 1) % 256
        with torch.no_grad():
            torch.testing.assert_close(host(tokens)[:, :9], host(changed)[:, :9])


def test_causal_mixers_read_the_last_patch_and_others_the_mean(settings, outsiders):
    race = settings(task="image")
    assert build_host("toy_mean", race, DIGITS, 5).read_last
    assert not build_host("softmax", race, DIGITS, 5).read_last


@pytest.mark.parametrize(("name", "knob"), [("softmax", 9), ("toy_mean", 9), ("toy_gate", 700)])
def test_every_pixel_and_every_parameter_counts(settings, outsiders, name, knob):
    host = build_host(name, settings(task="image"), PHOTOS, knob)
    images = torch.randn(3, 3, 32, 32, requires_grad=True)
    host(images).square().sum().backward()
    assert (images.grad != 0).all()
    for parameter in host.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_a_mixer_is_told_its_layer_where_it_asks(settings):
    first, last = build_host("lightning", settings(num_heads=2, dim=16), None, 9).mixers()
    assert first.slopes != last.slopes
    assert build_host("softmax", settings(), None, 9).mixers()[0].rope_base == 10000.0


# --------------------------------------------------------------------------------------------------- series


def series_host(settings, name="softmax", knob=9):
    torch.manual_seed(3)
    return build_host(name, settings(task="series"), SERIES, knob).eval()


def test_a_series_host_is_its_blocks_on_a_normalised_window_read_at_the_end(settings):
    host, series = series_host(settings), torch.randn(2, 7, 3) * 4 + 9
    forecast = host(series)
    for row, expected in zip(series, forecast, strict=True):
        mean = row.sum(0) / 7
        scale = (((row - mean) ** 2).sum(0) / 7 + 1e-5).sqrt()
        x = ((row - mean) / scale) @ host.embedding.weight.T + host.embedding.bias
        x = x[None]
        for block in host.blocks:
            x = x + block.mixer(block.mixer_norm(x))
            x = x + block.mlp(block.mlp_norm(x))
        flat = host.head(host.norm(x[0, 6]))
        ahead = torch.stack([flat[3 * step : 3 * step + 3] for step in range(5)])
        torch.testing.assert_close(expected, ahead * scale + mean)


def test_a_shifted_and_scaled_series_has_a_shifted_and_scaled_forecast(settings):
    host, series = series_host(settings, "linear"), torch.randn(2, 11, 3)
    times, plus = torch.tensor([3.0, 100.0, 0.5]), torch.tensor([7.0, -50.0, 0.0])
    torch.testing.assert_close(host(series * times + plus), host(series) * times + plus, atol=1e-2, rtol=1e-3)


def test_a_channel_that_stands_still_gives_numbers(settings):
    series = torch.randn(2, 7, 3)
    series[:, :, 1] = 5.0
    assert series_host(settings)(series).isfinite().all()


@pytest.mark.parametrize("name", ["softmax", "lightning", "aaren"])
def test_every_time_step_and_every_parameter_of_a_series_host_counts(settings, name):
    host = series_host(settings, name)
    series = torch.randn(4, 7, 3, requires_grad=True)
    host(series).square().sum().backward()
    assert (series.grad != 0).all()
    for parameter in host.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_mixers_of_a_series_host_are_causal(settings):
    for name in fitting("series"):
        assert all(mixer.causal for mixer in series_host(settings, name).mixers()), name
