"""Generated chest radiographs, and the small networks that MEDUSA's claims compare on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from regard.claims._small_images import Images, accuracy, fit_classifier
from regard.claims._training import SEEDS
from regard.layers.attention_body import AttentionBody
from regard.measure import one_thread
from regard.meta_device import sizes_only
from regard.models.medical.medusa import Medusa, MedusaConfig
from regard.tasks.radiographs.body_training import train_body
from regard.tasks.radiographs.synthetic import chest
from regard.tasks.recipe import Recipe

TRAINED, TESTED, DATA_SEED = 2000, 2000, 20
STEPS, BATCH, LEARNING_RATE, BODY_STEPS = 300, 32, 2e-3, 100
SHARED = replace(Medusa.SMALL, num_classes=2)
NETWORKS: Mapping[str, MedusaConfig] = {
    "MEDUSA": SHARED,
    "separate bodies": replace(SHARED, shared_body=False, body_width=3),
    "plain": replace(SHARED, attention="none", widths=(22, 33, 44, 88)),
    "SE": replace(SHARED, attention="se", widths=(22, 33, 44, 87)),
    "CBAM": replace(SHARED, attention="cbam", widths=(22, 33, 44, 87)),
    "local heads": replace(SHARED, attention="medusa_local", widths=(21, 32, 42, 84)),
}
"""Networks of about the same number of parameters: those without a body have wider stages."""
SETTING = (
    f"{TRAINED} generated radiographs of 64 x 64 to train on and {TESTED} to test on, ResNet of four stages with a "
    f"block each, AdamW with rate {LEARNING_RATE:g}, {STEPS} steps of {BATCH}, {len(SEEDS)} seeds"
)


@dataclass(frozen=True)
class Chests:
    """Radiographs with what is where.

    Args:
        images: to train on and to test on.
        train_lungs: `(images, 1, y, x)` of those to train on.
        test_lungs: of those to test on.
        test_lesions: the same.
    """

    images: Images
    train_lungs: Tensor
    test_lungs: Tensor
    test_lesions: Tensor


@cache
def chests() -> Chests:
    """The same in every run; values about -1 to 1."""
    random = np.random.default_rng(DATA_SEED)
    made = [chest(random) for _ in range(TRAINED + TESTED)]
    pixels, lungs, lesions = (torch.from_numpy(np.stack([each[place] for each in made]))[:, None] for place in range(3))
    values, labels = 4 * pixels - 2, torch.tensor([each.label for each in made])
    images = Images(values[:TRAINED], labels[:TRAINED], values[TRAINED:], labels[TRAINED:])
    return Chests(images, lungs[:TRAINED], lungs[TRAINED:], lesions[TRAINED:])


def parameters(config: MedusaConfig) -> int:
    """How many a network has."""
    with sizes_only():
        return sum(parameter.numel() for parameter in Medusa(config).parameters())


@cache
def trained(name: str, seed: int, *, two_phases: bool = False) -> Medusa:
    """A network after training; all of a seed see the same batches.

    Args:
        name: of `NETWORKS`.
        seed: of weights and batches.
        two_phases: whether the body first learns where the lungs are.
    """
    found = chests()
    build = partial(_with_trained_body if two_phases else Medusa, NETWORKS[name])
    with one_thread():
        model = fit_classifier(build, found.images, steps=STEPS, batch=BATCH, learning_rate=LEARNING_RATE, seed=seed)
    assert isinstance(model, Medusa)
    return model


def _with_trained_body(config: MedusaConfig) -> Medusa:
    model, found = Medusa(config), chests()
    recipe = Recipe(steps=BODY_STEPS, batch=BATCH, learning_rate=LEARNING_RATE)
    body = model.body
    assert isinstance(body, AttentionBody)
    train_body(body, found.images.train, found.train_lungs, recipe=recipe)
    return model


def accuracy_of(name: str, seed: int) -> float:
    """In percent."""
    with one_thread():
        return accuracy(trained(name, seed), chests().images)


@torch.no_grad()
def map_quality(model: Medusa, count: int = 500) -> tuple[float, float, float]:
    """How the maps of a network with a shared body lie.

    Args:
        model: the network.
        count: images that are looked at.

    Returns:
        The mean of sigmoid(A^G) inside the lungs over that outside; inside lesions over that outside the lungs; and
        the mean correlation of two scales' attention over positions, all scales at the size of the finest.
    """
    found = chests()
    with one_thread():
        maps = model.eval().attention_maps(found.images.test[:count])
    (global_map,) = maps.global_maps
    values = global_map[:, :1].sigmoid()
    height, width = values.shape[2:]
    lungs, lesions = (
        F.adaptive_avg_pool2d(masks[:count].float(), (height, width))
        for masks in (found.test_lungs, found.test_lesions)
    )
    outside = (values * (1 - lungs)).sum() / (1 - lungs).sum()
    ratios = [float((values * inside).sum() / inside.sum() / outside) for inside in (lungs, lesions)]
    finest = maps.scales[0].shape[2:]
    flat = torch.stack(
        [F.interpolate(each, size=(finest[0], finest[1]), mode="bilinear").flatten(1) for each in maps.scales]
    )
    centred = flat - flat.mean(dim=2, keepdim=True)
    unit = centred / centred.norm(dim=2, keepdim=True).clamp(min=1e-8)
    pairs = torch.einsum("s i n, t i n -> s t i", unit, unit).mean(dim=2)
    scales = len(pairs)
    correlation = (pairs.sum() - pairs.diagonal().sum()) / (scales * (scales - 1))
    return ratios[0], ratios[1], float(correlation)
