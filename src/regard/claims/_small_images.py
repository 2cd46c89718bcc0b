"""Small images for claims about classifiers: 8 x 8 digits that come with scikit-learn, and MNIST's test file."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims._training import data_folder, fit

SPLIT_SEED = 0


@dataclass(frozen=True)
class Images:
    """A small set for classification, one channel, values about in -1..1.

    Args:
        train: images `(number, 1, y, x)`.
        train_labels: their classes.
        test: images that are measured on.
        test_labels: their classes.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@functools.cache
def digits() -> Images:
    """1,797 images of 8 x 8 pixels in ten classes, split into 1,200 and 597."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images.astype(np.float32) / 8 - 1)[:, None]
    return _split(images, torch.from_numpy(data.target.astype(np.int64)), train=1200)


@functools.cache
def mnist_test_file() -> Images | None:
    """The 10,000 images of MNIST's test file, split into 8,000 and 2,000; None where the data folder lacks them."""
    folder = data_folder("mnist")
    if folder is None:
        return None
    pixels = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1
    classes = np.frombuffer(labels, dtype=np.uint8).astype(np.int64)
    return _split(torch.from_numpy(images), torch.from_numpy(classes), train=8000)


def _split(images: Tensor, labels: Tensor, *, train: int) -> Images:
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(images)))
    images, labels = images[order], labels[order]
    return Images(images[:train], labels[:train], images[train:], labels[train:])


def fit_classifier(
    build: Callable[[], nn.Module], images: Images, *, steps: int, batch: int, learning_rate: float, seed: int
) -> nn.Module:
    """A classifier built and trained from `seed`; every network sees the same batches of a seed, epoch by epoch."""
    torch.manual_seed(seed)
    model = build()
    per_epoch = len(images.train) // batch

    def sample(step: int) -> tuple[Tensor, Tensor]:
        epoch, number = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(images.train))
        chosen = torch.from_numpy(order[number * batch : (number + 1) * batch])
        return images.train[chosen], images.train_labels[chosen]

    def loss(network: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(rows[0]), rows[1])

    fit(model, sample, loss, steps=steps, learning_rate=learning_rate, weight_decay=0.0, seed=seed)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Percent of the test images whose class has the highest score."""
    model.eval()
    right = [model(part).argmax(dim=1) for part in images.test.split(500)]
    return 100 * float((torch.cat(right) == images.test_labels).float().mean())
