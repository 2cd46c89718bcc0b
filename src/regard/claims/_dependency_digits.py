"""DependencyViT, its lite form and an equal Transformer on digits, each trained once for all claims."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import nn

from regard.claims._small_images import Images, accuracy, digits, fit_classifier
from regard.claims._training import SEEDS, mean
from regard.layers.reversed_attention import Score
from regard.measure import one_thread
from regard.models.vision.dependencyvit import DependencyViT, DependencyViTConfig
from regard.models.vision.vit import ViT, ViTConfig

SIZE, CANVAS = 8, 12
STEPS, BATCH, LEARNING_RATE = 500, 64, 2e-3
PRUNE_LAYERS, PRUNE_RATIO = (2, 3, 4), 0.16
RECIPE = (
    f"scikit-learn's digits, 1,200 to train and 597 to test, patches of 2 x 2, width 64, 4 layers, 4 heads, "
    f"perceptrons 128 wide, Adam with rate 2e-3 (warm-up, cosine), {STEPS} steps of {BATCH}, {len(SEEDS)} seeds"
)


@functools.cache
def digits_on_canvas() -> Images:
    """The digits in the middle of an empty canvas of 12 x 12 pixels."""
    plain, border = digits(), (CANVAS - SIZE) // 2
    train, test = (F.pad(images, (border,) * 4, value=-1.0) for images in (plain.train, plain.test))
    return Images(train, plain.train_labels, test, plain.test_labels)


def _config(image_size: int, pruned_by: Score | None) -> DependencyViTConfig:
    config = replace(DependencyViT.SMALL, image_size=image_size, num_layers=4)
    if pruned_by is None:
        return config
    return replace(config, prune_layers=PRUNE_LAYERS, prune_ratio=PRUNE_RATIO, prune_score=pruned_by)


def _vit(image_size: int) -> ViT:
    sizes = DependencyViT.SMALL
    return ViT(
        ViTConfig(
            image_size=image_size,
            in_channels=1,
            num_classes=10,
            patch_size=sizes.patch_size,
            dim=sizes.dim,
            num_layers=4,
            num_heads=sizes.num_heads,
            hidden=round(sizes.dim * sizes.mlp_ratio),
        )
    )


@functools.cache
def _trained(network: str, seed: int, on_canvas: bool) -> nn.Module:
    size, images = (CANVAS, digits_on_canvas()) if on_canvas else (SIZE, digits())
    builders: dict[str, Callable[[], nn.Module]] = {
        "full": lambda: DependencyViT(_config(size, None)),
        "by score": lambda: DependencyViT(_config(size, "received")),
        "by m": lambda: DependencyViT(_config(size, "sent")),
        "at random": lambda: DependencyViT(_config(size, "random")),
        "ViT": lambda: _vit(size),
    }
    return fit_classifier(builders[network], images, steps=STEPS, batch=BATCH, learning_rate=LEARNING_RATE, seed=seed)


def mean_accuracy(network: str, *, on_canvas: bool = False) -> float:
    """Percent of the test images, over all seeds.

    Args:
        network: "full", pruned "by score", "by m" or "at random", or "ViT".
        on_canvas: digits on an empty canvas, else as they are.
    """
    images = digits_on_canvas() if on_canvas else digits()
    with one_thread():
        return mean([accuracy(_trained(network, seed, on_canvas), images) for seed in SEEDS])
