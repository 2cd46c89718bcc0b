"""The first of MEDUSA's two phases: the attention body alone learns where the lungs are, before it learns findings.

Afterwards the whole network is trained for classification, and the global map starts on the lungs.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.layers.attention_body import AttentionBody, mask_loss
from regard.tasks.recipe import Recipe


def train_body(
    body: AttentionBody,
    images: Float[Tensor, "images in_channels y x"],
    masks: Bool[Tensor, "images 1 y x"],
    *,
    recipe: Recipe,
) -> float:
    """Train a body in place on masks, by AdamW with the recipe's rate, batch and seed.

    Args:
        body: of a network that is trained afterwards.
        images: normalised as the network takes them.
        masks: of the lungs, of the images' size.
        recipe: steps, batch, learning rate, weight decay and seed are taken from it.

    Returns:
        The loss of the last step, in nats.

    Raises:
        ValueError: another number of masks than of images, or none.
    """
    if len(images) != len(masks) or not len(images):
        raise ValueError(f"every image needs a mask: there are {len(images)} images and {len(masks)} masks")
    optimizer = torch.optim.AdamW(body.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    random, rows = np.random.default_rng(recipe.seed), min(recipe.batch, len(images))
    was_training, value = body.training, float("nan")
    body.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        chosen = torch.from_numpy(random.choice(len(images), size=rows, replace=False))
        loss = mask_loss(body(images[chosen]), masks[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
    body.train(was_training)
    return value
