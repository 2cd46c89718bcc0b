"""The event model: no look-ahead, masks, streaming, likelihoods that sum to one, learning a rhythm, ill arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from regard.models.series.event_model import EventModel, EventModelConfig

SMALL = EventModelConfig(
    num_marks=3, components=4, dim=12, num_layers=2, num_heads=3, hidden=17, dropout=0.0, log_time_mean=-0.3
)
MIXERS = ["aaren", "softmax", "lightning", "linear"]


def events(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(batch, length, dtype=torch.float64) + 0.1, torch.randint(0, 3, (batch, length))


def make(mixer: str = "aaren", **changes: Any) -> EventModel:
    return EventModel(replace(SMALL, mixer=mixer, **changes)).double().eval()


@pytest.mark.parametrize("mixer", MIXERS)
def test_an_event_is_judged_by_those_before_it_alone(mixer: str) -> None:
    model = make(mixer)
    times, marks = events(2, 9)
    before = model(times, marks)
    times[:, 5], marks[:, 5] = 7.0, (marks[:, 5] + 1) % 3
    after = model(times, marks)
    for old, new in zip(before, after, strict=True):
        assert old.shape[1] == 10
        torch.testing.assert_close(new[:, :6], old[:, :6])
        assert float((new[:, 6:] - old[:, 6:]).detach().abs().min(dim=1).values.max()) > 0


def test_likelihoods_are_those_of_the_forecast() -> None:
    model = make(log_time_std=0.7)
    times, marks = events(2, 5)
    forecast = model(times, marks)
    of_times, of_marks = model.log_prob(times, marks)
    for row in range(2):
        for place in range(5):
            logs = (times[row, place].log() + 0.3) / 0.7
            parts = torch.distributions.Normal(forecast.means[row, place], forecast.log_scales[row, place].exp())
            density = (forecast.log_weights[row, place] + parts.log_prob(logs)).exp().sum() / (0.7 * times[row, place])
            torch.testing.assert_close(of_times[row, place], density.log())
            assert of_marks[row, place] == forecast.mark_log_probs[row, place, marks[row, place]]
    torch.testing.assert_close(model.loss(times, marks), -(of_times + of_marks).mean())
    torch.testing.assert_close(forecast.mark_log_probs.exp().sum(dim=-1), torch.ones(2, 6, dtype=torch.float64))


@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_anywhere_equals_the_unpadded_call(mixer: str) -> None:
    model = make(mixer)
    times, marks = events(3, 9)
    mask = torch.rand(3, 9) < 0.6
    mask[0], mask[1, :3] = torch.arange(9) < 5, False
    given = torch.where(mask, times, torch.nan), torch.where(mask, marks, -7)
    padded = model.log_prob(*given, mask=mask)
    assert all(torch.equal(part[~mask], torch.zeros_like(part[~mask])) for part in padded)
    total = 0.0
    for row in range(3):
        alone = model.log_prob(times[row, mask[row]][None], marks[row, mask[row]][None])
        for found, expected in zip(padded, alone, strict=True):
            torch.testing.assert_close(found[row, mask[row]], expected[0], rtol=1e-8, atol=1e-8)
        total -= float(sum(part.detach().sum() for part in alone))
    assert float(model.loss(*given, mask=mask).detach()) == pytest.approx(total / int(mask.sum()))


@pytest.mark.parametrize("mixer", MIXERS)
def test_streaming_equals_forward(mixer: str) -> None:
    model = make(mixer)
    times, marks = events(2, 7)
    with torch.no_grad():
        whole = model(times, marks)
        forecast, state = model.start(2, max_len=7)
        pieces = [forecast]
        for piece in (slice(0, 3), slice(3, 4), slice(4, 7)):
            forecast, state = model.step(times[:, piece], marks[:, piece], state)
            pieces.append(forecast)
    for number, expected in enumerate(whole):
        torch.testing.assert_close(torch.cat([piece[number] for piece in pieces], dim=1), expected)


def test_expected_time_is_the_mean_of_samples() -> None:
    model = make()
    forecast = model(*events(1, 3))
    narrow = forecast._replace(log_scales=torch.full_like(forecast.log_scales, -1.0))
    generator = torch.Generator().manual_seed(5)
    chosen = torch.multinomial(narrow.log_weights[0, -1].exp(), 200_000, replacement=True, generator=generator)
    noise = torch.randn(200_000, generator=generator, dtype=torch.float64)
    samples = (narrow.means[0, -1][chosen] + 0.36787944 * noise - 0.3).exp()
    assert float(model.expected_time(narrow)[0, -1].detach()) == pytest.approx(float(samples.detach().mean()), rel=0.02)


def test_simultaneous_and_far_events_stay_finite() -> None:
    model = EventModel(SMALL)
    times, marks = torch.tensor([[0.0, 1e-30, 1e12, 1.0]]), torch.tensor([[0, 1, 2, 0]])
    loss = model.loss(times, marks)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    nothing = model.loss(times, marks, mask=torch.zeros(1, 4, dtype=torch.bool))
    assert float(nothing.detach()) == 0


@pytest.mark.parametrize("mixer", ["aaren", "softmax"])
def test_learns_a_rhythm(mixer: str) -> None:
    """Marks in turn; a long time comes before mark 0, short ones before the others."""
    model = EventModel(replace(SMALL, mixer=mixer))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator, losses = torch.Generator().manual_seed(3), []
    for _ in range(60):
        marks = (torch.arange(12) + torch.randint(0, 3, (8, 1), generator=generator)) % 3
        times = torch.where(marks == 0, 2.0, 0.2) * torch.exp(0.1 * torch.randn(8, 12, generator=generator))
        loss = model.loss(times, marks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1.5
    forecast = model(times, marks)
    right = forecast.mark_log_probs[:, 1:-1].argmax(dim=-1) == marks[:, 1:]
    assert float(right.float().mean()) > 0.9


@pytest.mark.parametrize(
    ("times", "marks", "mask", "message"),
    [
        (torch.ones(2, 3), torch.zeros(2, 4, dtype=torch.int64), None, r"\(2, 3\) and \(2, 4\)"),
        (torch.ones(2, 3), torch.zeros(2, 3), None, "marks must be int32 or int64, got torch.float32"),
        (torch.ones(2, 3).long(), torch.zeros(2, 3).long(), None, "floating point"),
        (torch.ones(2, 3), torch.zeros(2, 3).long(), torch.ones(2, 2).bool(), r"= \(2, 3\), got .* \(2, 2\)"),
    ],
)
def test_ill_arguments_are_named(times: Any, marks: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventModel(SMALL)(times, marks, mask=mask)


@pytest.mark.parametrize("changes", [{"num_marks": 0}, {"log_time_std": 0.0}, {"min_time": -1.0}])
def test_ill_configs_are_named(changes: dict[str, Any]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name} must be positive, got {value}"):
        replace(SMALL, **changes)
