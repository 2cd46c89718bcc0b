"""Classes of series of unequal length: padding, empty series, streaming, ill arguments."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from regard.models.series.series_classifier import SeriesClassifier, SeriesClassifierConfig

SMALL = SeriesClassifierConfig(channels=3, num_classes=5, dim=12, num_layers=2, num_heads=3, hidden=17, dropout=0.1)
MIXERS = ["aaren", "softmax", "lightning", "linear"]


@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_anywhere_equals_the_unpadded_call(mixer: str) -> None:
    model = SeriesClassifier(replace(SMALL, mixer=mixer)).double().eval()
    series = torch.randn(3, 11, 3, dtype=torch.float64)
    mask = torch.rand(3, 11) < 0.6
    mask[0], mask[1] = torch.arange(11) < 4, torch.arange(11) >= 6
    padded = model(torch.where(mask[..., None], series, torch.nan), mask=mask)
    for row in range(3):
        alone = model(series[row : row + 1, mask[row]])
        torch.testing.assert_close(padded[row : row + 1], alone, rtol=1e-8, atol=1e-8)


def test_an_empty_series_is_scored_by_the_bias() -> None:
    model = SeriesClassifier(SMALL).eval()
    mask = torch.tensor([[True] * 4, [False] * 4])
    scores = model(torch.randn(2, 4, 3), mask=mask)
    assert torch.equal(scores[1], model.head.bias)
    assert not torch.equal(scores[0], model.head.bias)


@pytest.mark.parametrize("mixer", MIXERS)
def test_streaming_ends_at_the_same_scores(mixer: str) -> None:
    model = SeriesClassifier(replace(SMALL, mixer=mixer)).double().eval()
    series = torch.randn(2, 9, 3, dtype=torch.float64)
    with torch.no_grad():
        state = model.init_state(2, max_len=9)
        first, state = model.step(series[:, :5], state)
        torch.testing.assert_close(first[:, -1], model(series[:, :5]))
        for step in range(5, 9):
            scores, state = model.step(series[:, step : step + 1], state)
        torch.testing.assert_close(scores[:, -1], model(series))


def test_streaming_pauses_at_masked_steps() -> None:
    model = SeriesClassifier(SMALL).double().eval()
    series, mask = (
        torch.randn(1, 7, 3, dtype=torch.float64),
        torch.tensor([[True, False, True, True, False, False, True]]),
    )
    with torch.no_grad():
        scores, state = model.step(series, model.init_state(1), mask=mask)
        torch.testing.assert_close(scores[:, -1], model(series[:, mask[0]]))
    assert state[0].position.tolist() == [4]


def test_dropout_acts_in_training_alone() -> None:
    model, series = SeriesClassifier(SMALL), torch.randn(2, 7, 3)
    with torch.no_grad():
        assert not torch.equal(model(series), model(series))
        model.eval()
        assert torch.equal(model(series), model(series))


def test_ill_arguments_are_named() -> None:
    model = SeriesClassifier(SMALL)
    with pytest.raises(ValueError, match=re.escape("(batch, steps, 3), got (2, 7, 4)")):
        model(torch.zeros(2, 7, 4))
    with pytest.raises(ValueError, match=re.escape("(batch, steps) = (2, 7), got torch.bool of shape (2, 6)")):
        model(torch.zeros(2, 7, 3), mask=torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_classes must be positive, got 0"):
        replace(SMALL, num_classes=0)
