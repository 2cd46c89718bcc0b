"""NiNformer: counted parameters and MACs, the norm used twice, the authors' layout, ill configs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from regard.measure import contraction_macs
from regard.metadata import Variant
from regard.models.vision.ninformer import (
    NiNformer,
    NiNformerBlock,
    NiNformerClassifier,
    NiNformerConfig,
    ninformer_macs,
    own_classifier_name,
)

SMALL = NiNformerConfig(
    image_size=9, in_channels=2, num_classes=5, patch_size=3, dim=10, num_layers=2, hidden=7, dropout=0.0
)


@pytest.mark.parametrize(("name", "variant"), NiNformerClassifier.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    with torch.device("meta"):
        model = NiNformerClassifier(variant.config)
    counts = {"ninformer_cifar10": 2_652_170, "ninformer_mnist": 2_582_478, "ninformer_cifar100": 2_675_300}
    assert sum(parameter.numel() for parameter in model.parameters()) == variant.reported.params == counts[name]


def test_macs_are_the_formulas() -> None:
    model = NiNformerClassifier(SMALL).eval()
    assert contraction_macs(lambda: model(torch.zeros(3, 2, 9, 9))) == 3 * ninformer_macs(SMALL)
    whole = ninformer_macs(NiNformerClassifier.VARIANTS["ninformer_cifar10"].config)
    assert whole == 4 * (64 * 256**2 + 6 * 64 * 256 * 512) + 64 * 48 * 256 + 2560


def test_the_norm_is_used_twice() -> None:
    block = NiNformerBlock(9, 10, hidden=7).double()
    norms = [name for name, part in block.named_modules() if isinstance(part, torch.nn.LayerNorm)]
    assert norms == ["norm", "mixer.block.token_norm", "mixer.block.channel_norm"]
    x = torch.randn(2, 9, 10, dtype=torch.float64)
    gated = x + block.mixer(block.norm(x))
    torch.testing.assert_close(block(x), gated + block.mlp(block.norm(gated)))


def test_classifies_the_mean_of_unnormed_tokens() -> None:
    model = NiNformerClassifier(SMALL)
    images = torch.randn(2, 2, 9, 9)
    x = model.patches(images)
    for block in model.backbone.blocks:
        x = block(x)
    torch.testing.assert_close(model(images), model.head(x.mean(dim=1)))


def authors_layout(model: NiNformerClassifier) -> dict[str, torch.Tensor]:
    """Random weights under the authors' names."""
    unit = ("proj", "Mixer.token_mix.0", "Mixer.token_mix.2.net.0", "Mixer.token_mix.2.net.3")
    unit += ("Mixer.channel_mix.0", "Mixer.channel_mix.1.net.0", "Mixer.channel_mix.1.net.3")
    parts = ["patcher", "classifier"]
    for layer in range(model.config.num_layers):
        parts += [f"model.{layer}.{part}" for part in ("norm", "ffn.net.0", "ffn.net.3", *(f"mgu.{p}" for p in unit))]
    names = [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    own = model.state_dict()
    return {name: torch.randn_like(own[own_classifier_name(name)]) for name in names}


def test_loads_the_authors_layout_strictly() -> None:
    model = NiNformerClassifier(SMALL)
    layout = authors_layout(model)
    model.load_reference(layout)
    block = model.backbone.blocks[1]
    assert isinstance(block, NiNformerBlock)
    assert torch.equal(block.mixer.u_proj.weight, layout["model.1.mgu.proj.weight"])
    assert torch.equal(block.mlp.down_proj.bias, layout["model.1.ffn.net.3.bias"])
    assert torch.equal(model.patches.proj.weight, layout["patcher.weight"])
    assert torch.equal(model.head.bias, layout["classifier.bias"])
    layout["model.7.norm.weight"] = layout.pop("model.1.norm.weight")
    with pytest.raises(
        KeyError, match=r"unknown keys: .*blocks\.7\.norm\.weight; missing keys: .*blocks\.1\.norm\.weight"
    ):
        model.load_reference(layout)
    backbone = NiNformer(9, 10, num_layers=1, hidden=7)
    with pytest.raises(KeyError, match="missing keys"):
        backbone.load_reference({"model.0.norm.weight": torch.ones(10)})


def test_checkpointing_changes_nothing_but_memory() -> None:
    plain = NiNformerClassifier(SMALL).double().train()
    thrifty = NiNformerClassifier(replace(SMALL, checkpointing=True)).double().train()
    thrifty.load_state_dict(plain.state_dict())
    images = torch.randn(3, 2, 9, 9, dtype=torch.float64)
    for model in (plain, thrifty):
        model(images).square().sum().backward()
    for (name, ours), theirs in zip(thrifty.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_dropout_acts_in_training_alone() -> None:
    model, images = NiNformerClassifier(replace(SMALL, dropout=0.5)), torch.randn(2, 2, 9, 9)
    with torch.no_grad():
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))


def test_learns_digits() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images[:64] / 8 - 1).float()[:, None]
    labels = torch.from_numpy(data.target[:64])
    model = NiNformerClassifier(replace(NiNformerClassifier.SMALL, dropout=0.0, num_layers=1, dim=32))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 4}, "image_size=9, got 4"),
        ({"dim": 0}, "dim must be positive, got 0"),
        ({"dropout": 1.0}, "got 1.0"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize("shape", [(2, 2, 9, 12), (2, 1, 9, 9)])
def test_ill_images_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"(batch, 2, 9, 9), got {shape}")):
        NiNformerClassifier(SMALL)(torch.zeros(shape))
