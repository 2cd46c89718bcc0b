"""Fréchet's distance, and the training of small generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regard.claims._generation import (
    Discriminator,
    FeatureClassifier,
    fit_generator,
    frechet_distance,
    generated,
)
from regard.claims._small_images import digits
from regard.models.vision.maxvit_generator import MaxViTGenerator, MaxViTGeneratorConfig

TINY = MaxViTGeneratorConfig(latent_dim=4, dims=(8, 8), head_dim=4, expand_ratio=1, mlp_ratio=1.0)


def samples(seed: int, count: int = 300, width: int = 5) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) @ random.normal(size=(width, width)) + random.normal(size=width)


def test_is_the_formula_with_a_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    first, second = samples(0), samples(1)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    means = first.mean(axis=0) - second.mean(axis=0)
    expected = means @ means + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)
    assert frechet_distance(first, second) == pytest.approx(expected)


def test_equal_images_are_at_no_distance_and_shifted_ones_at_the_shifts_square() -> None:
    first = samples(2)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + 3) == pytest.approx(5 * 9)
    assert frechet_distance(first, samples(3)) == pytest.approx(frechet_distance(samples(3), first))


def test_of_normal_numbers_it_is_the_difference_of_the_spreads() -> None:
    first = samples(4, width=1)
    assert frechet_distance(first, 3 * first - 2 * first.mean()) == pytest.approx(4 * first.var(ddof=1))


def test_features_that_never_vary_are_no_obstacle() -> None:
    first = np.concatenate([samples(5), np.zeros((300, 2))], axis=1)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_training_is_decided_by_the_seed_and_moves_the_generator() -> None:
    def fitted(seed: int) -> torch.Tensor:
        generator = fit_generator(
            lambda: MaxViTGenerator(TINY), digits(), latent_dim=4, steps=5, batch=8, rate=1e-3, seed=seed
        )
        assert not generator.training
        return generated(generator, latent_dim=4, count=6, seed=0)

    images = fitted(0)
    assert images.shape == (6, 1, 8, 8)
    assert torch.equal(images, fitted(0))
    assert not torch.equal(images, fitted(1))


def test_a_loss_that_is_no_number_is_told_with_its_step() -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.full((len(latents), 1, 8, 8), torch.nan) * self.weight

    with pytest.raises(FloatingPointError, match="a loss became nan at step 1"):
        fit_generator(Broken, digits(), latent_dim=4, steps=2, batch=4, rate=1e-3, seed=0)


def test_judge_and_classifier_take_larger_images() -> None:
    images = torch.randn(3, 1, 16, 16)
    assert Discriminator(16)(images).shape == (3,)
    assert FeatureClassifier(16)(images).shape == (3, 10)
