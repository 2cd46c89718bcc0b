"""Every image network takes a step of training at the resolution of its first variant, and says its sizes truly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import regard
from regard.contract import Model
from regard.registry import get_class

FAMILIES = [
    name
    for name, entry in regard.systems("model").items()
    if ".models.vision." in entry.module and issubclass(get_class(name), Model) and hasattr(get_class(name), "SMALL")
]


def test_there_are_families() -> None:
    assert {"davit", "maxvit", "halonet", "biformer", "shvit", "efficientvit", "agent_deit", "dependencyvit"} <= set(
        FAMILIES
    )


BEHIND_THE_LAST_CLASS_TOKEN = {
    "agent_deit": {
        f"blocks.11.mixer.{name}"
        for name in ("bias.query_grid", "bias.query_rows", "bias.query_columns", "local.weight", "local.bias")
    }
}
"""What changes patches alone in a last block of which the head reads the class token: no gradient by theory."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_at_its_own_resolution_changes_every_parameter(name: str) -> None:
    cls: Any = get_class(name)
    variant = next(iter(cls.VARIANTS.values()))
    side = getattr(variant.config, "image_size", None) or variant.reported.image_size or 224
    torch.manual_seed(0)
    model = cls(variant.config).train()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        # a factor that starts from 0 hides what is behind it from the first gradient
        scores = model(torch.randn(2, variant.config.in_channels, side, side))
        loss = cross_entropy(scores, torch.tensor([1, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    unchanged = {key for key, parameter in model.named_parameters() if torch.equal(before[key], parameter)}
    assert unchanged == BEHIND_THE_LAST_CLASS_TOKEN.get(name, set())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_small_network_learns_digits_at_once(name: str) -> None:
    cls: Any = get_class(name)
    torch.manual_seed(0)
    model = cls(cls.SMALL).train()
    images = torch.randn(20, 1, 8, 8)
    labels = torch.arange(20) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.eval()(images).shape == (20, 10)
