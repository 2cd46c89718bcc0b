"""Generated textures in ten classes: gratings of five directions and two wavelengths in noise, to pretrain on."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims._training import fit
from regard.models.medical.efficientnet_encoder import EfficientNetEncoder

DIRECTIONS, WAVELENGTHS = 5, (5.0, 11.0)
CLASSES = DIRECTIONS * len(WAVELENGTHS)


def textures(random: np.random.Generator, *, number: int, side: int) -> tuple[Tensor, Tensor]:
    """Images `(number, 3, side, side)` of about unit spread, and their classes.

    Args:
        random: where all numbers come from.
        number: of images.
        side: pixels per side.
    """
    labels = random.integers(0, CLASSES, number)
    direction = (labels % DIRECTIONS + random.uniform(-0.25, 0.25, number)) * (math.pi / DIRECTIONS)
    wavelength = np.array(WAVELENGTHS)[labels // DIRECTIONS] * random.uniform(0.9, 1.1, number)
    frequency = 2 * math.pi / wavelength
    x, y = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    across = np.multiply.outer(frequency * np.cos(direction), x) + np.multiply.outer(frequency * np.sin(direction), y)
    waves = np.sin(across + random.uniform(0, 2 * math.pi, (number, 1, 1)))
    gains = random.uniform(0.4, 1.2, (number, 3, 1, 1))
    images = gains * waves[:, None] + random.normal(0, 0.7, (number, 3, side, side))
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)


class TextureClassifier(nn.Module):
    """A linear map on the means of an encoder's coarsest map.

    Args:
        encoder: gives maps.
    """

    def __init__(self, encoder: EfficientNetEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.channels[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes."""
        maps = self.encoder(images.contiguous(memory_format=torch.channels_last))
        return self.head(maps[-1].mean(dim=(2, 3)))


def pretrained_encoder(
    name: str, *, seed: int, steps: int, batch: int, side: int, learning_rate: float
) -> tuple[dict[str, Tensor], float]:
    """The weights of an encoder after learning textures, and the percent of 200 new ones that it tells right.

    Args:
        name: timm's name of the encoder.
        seed: of the weights and the textures.
        steps: number of updates, each on new textures.
        batch: textures in each.
        side: pixels per side.
        learning_rate: the peak.
    """
    torch.manual_seed(seed)
    model = TextureClassifier(EfficientNetEncoder(name, in_channels=3)).to(memory_format=torch.channels_last)

    def sample(step: int) -> tuple[Tensor, Tensor]:
        return textures(np.random.default_rng([seed, step]), number=batch, side=side)

    def loss(network: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(rows[0]), rows[1])

    fit(model, sample, loss, steps=steps, learning_rate=learning_rate, seed=seed)
    images, labels = textures(np.random.default_rng([seed, steps]), number=200, side=side)
    with torch.no_grad():
        right = torch.cat([model(part).argmax(dim=1) for part in images.split(50)]) == labels
    return model.encoder.state_dict(), 100 * float(right.float().mean())
