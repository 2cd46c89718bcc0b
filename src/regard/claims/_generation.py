"""Small adversarial training of image generators for claims, and how far their images are from real ones.

The distance is Fréchet's between normal distributions fitted to the features of a fixed small classifier: "GANs Trained
by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", Heusel et al., NeurIPS 2017,
https://arxiv.org/abs/1706.08500, equation 6. Training: the non-saturating loss with a penalty on the gradient at real
images ("Which Training Methods for GANs do actually Converge?", Mescheder et al., ICML 2018,
https://arxiv.org/abs/1801.04406, equation 9), Adam with betas (0, 0.99), and a rate that falls linearly to 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import softplus

from regard.claims._small_images import Images, accuracy, digits, fit_classifier

FEATURES = 32
PENALTY, PENALISED_EVERY = 1.0, 4


def frechet_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the rows' means m and covariances S.

    Args:
        first: features, a row per image; at least two rows.
        second: the same of other images.
    """
    means = first.mean(axis=0) - second.mean(axis=0)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    one, two = np.atleast_2d(one), np.atleast_2d(two)
    # S1 S2 has the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ two @ root).clip(min=0)).sum()
    return float(means @ means + np.trace(one) + np.trace(two) - 2 * shared)


class FeatureClassifier(nn.Module):
    """A small convolutional classifier, whose features are what its last layer sees.

    Args:
        image_size: pixels per side of its images, a multiple of 4.
    """

    def __init__(self, image_size: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (image_size // 2) ** 2, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes."""
        return self.head(self.body(images))


class Discriminator(nn.Module):
    """A small convolutional judge without norms: a number per image, high where it looks real.

    Args:
        image_size: pixels per side of its images, a multiple of 4.
    """

    def __init__(self, image_size: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(64 * (image_size // 4) ** 2, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """A number per image."""
        return self.body(images)[:, 0]


@functools.cache
def digit_features() -> tuple[FeatureClassifier, float]:
    """The classifier that judges generated digits, trained from a fixed seed, and its accuracy in percent."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        model = fit_classifier(FeatureClassifier, digits(), steps=300, batch=100, learning_rate=3e-3, seed=0)
    assert isinstance(model, FeatureClassifier)
    return model.eval().requires_grad_(False), accuracy(model, digits())


@torch.no_grad()
def features_of(images: Tensor) -> NDArray[np.float64]:
    """What the classifier of digits sees in images."""
    classifier, _ = digit_features()
    return torch.cat([classifier.body(part) for part in images.split(500)]).double().numpy()


def fit_generator(
    build: Callable[[], nn.Module], images: Images, *, latent_dim: int, steps: int, batch: int, rate: float, seed: int
) -> nn.Module:
    """A generator built and trained from `seed` against a discriminator that starts from the same seed.

    Raises:
        FloatingPointError: a loss is NaN or infinite; the step is named.
    """
    torch.manual_seed(seed)
    judge = Discriminator(images.train.shape[-1])
    torch.manual_seed(seed)
    generator = build().train()
    optimizers = [torch.optim.Adam(model.parameters(), lr=rate, betas=(0.0, 0.99)) for model in (judge, generator)]
    schedules = [torch.optim.lr_scheduler.LinearLR(each, 1.0, 0.01, total_iters=steps) for each in optimizers]
    numbers = np.random.default_rng(seed)
    latents = torch.Generator().manual_seed(seed)
    for step in range(steps):
        real = images.train[torch.from_numpy(numbers.integers(len(images.train), size=batch))]
        with torch.no_grad():
            made = generator(torch.randn(batch, latent_dim, generator=latents))
        _update(optimizers[0], _judges_loss(judge, real, made, penalised=step % PENALISED_EVERY == 0), step)
        made = generator(torch.randn(batch, latent_dim, generator=latents))
        _update(optimizers[1], softplus(-judge(made)).mean(), step)
        for schedule in schedules:
            schedule.step()
    return generator.eval()


def _judges_loss(judge: nn.Module, real: Tensor, made: Tensor, *, penalised: bool) -> Tensor:
    real = real.detach().requires_grad_(penalised)
    scores = judge(real)
    loss = softplus(judge(made)).mean() + softplus(-scores).mean()
    if not penalised:
        return loss
    (slopes,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    return loss + PENALISED_EVERY * PENALTY / 2 * slopes.square().sum(dim=(1, 2, 3)).mean()


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, step: int) -> None:
    if not bool(loss.detach().isfinite()):
        raise FloatingPointError(f"a loss became {float(loss.detach())} at step {step + 1}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@torch.no_grad()
def generated(generator: nn.Module, *, latent_dim: int, count: int, seed: int) -> Tensor:
    """Images from `count` latent vectors."""
    latents = torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(seed))
    return torch.cat([generator(part) for part in latents.split(500)])
