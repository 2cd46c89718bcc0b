from __future__ import annotations

import numpy as np
import pytest
import torch

from regard.layers.attention_body import AttentionBody
from regard.tasks.radiographs.body_training import train_body
from regard.tasks.radiographs.synthetic import chest
from regard.tasks.recipe import Recipe


def test_a_body_learns_where_the_lungs_are() -> None:
    random = np.random.default_rng(0)
    made = [chest(random, size=32) for _ in range(48)]
    images = torch.from_numpy(np.stack([each.image for each in made]))[:, None] * 4 - 2
    masks = torch.from_numpy(np.stack([each.lungs for each in made]))[:, None]
    torch.manual_seed(0)
    body = AttentionBody(1, width=4, levels=2).eval()
    loss = train_body(body, images, masks, recipe=Recipe(steps=40, batch=12, learning_rate=2e-2))
    assert loss < 0.35
    assert not body.training
    with torch.no_grad():
        global_map = body(images)[:, 0]
    inside = torch.nn.functional.avg_pool2d(masks.float(), 2)[:, 0] > 0.5
    assert float(global_map[inside].mean()) > float(global_map[~inside].mean()) + 2
    with pytest.raises(ValueError, match="there are 48 images and 47 masks"):
        train_body(body, images, masks[:-1], recipe=Recipe(steps=1))
