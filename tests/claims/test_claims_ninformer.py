"""What NiNformer's claims measure with: variance of token mixing, crossover, the gate without its map, the images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from regard.claims._small_images import accuracy, digits, fit_classifier
from regard.claims.ninformer import crossover, materialised, relative_variance, transformer_block, without_map
from regard.layers.mixer_block import MixerBlock
from regard.models.vision.ninformer import NiNformerBlock, NiNformerClassifier


def test_variance_of_static_and_of_dynamic_mixing() -> None:
    inputs, weight = torch.randn(9, 5, 3), torch.randn(5, 5)
    assert relative_variance(lambda x: weight @ x, inputs) == pytest.approx(0, abs=1e-6)
    # the derivative of x^2 is 2 x on the diagonal, and 0 elsewhere
    expected = inputs.var(dim=0, correction=0).sum() / inputs.square().mean(dim=0).sum()
    assert relative_variance(torch.square, inputs) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ({64: 1.5, 256: 0.9, 1024: 0.5}, "from N = 256 on"),
        ({64: 0.9, 256: 1.1, 1024: 0.5}, "from N = 1,024 on"),
        ({64: 0.9, 256: 0.5}, "from N = 64 on"),
        ({64: 1.5, 256: 1.1}, "at none of the lengths"),
    ],
)
def test_crossover_in_words(ratios: dict[int, float], words: str) -> None:
    assert crossover(ratios) == words


def test_without_the_map_the_gate_is_one() -> None:
    model = without_map(NiNformerClassifier(replace(NiNformerClassifier.SMALL, dropout=0.0)))
    assert isinstance(model, NiNformerClassifier)
    block = model.backbone.blocks[0]
    assert isinstance(block, NiNformerBlock)
    assert isinstance(block.mixer, MixerBlock)
    x = torch.randn(1, 16, 64)
    gated = x + block.mixer(block.norm(x))
    torch.testing.assert_close(block(x), gated + block.mlp(block.norm(gated)))


def test_digits_are_split_and_learned_from() -> None:
    images = digits()
    assert images.train.shape == (1200, 1, 8, 8)
    assert images.test.shape == (597, 1, 8, 8)
    assert float(images.train.min()) == -1
    assert float(images.train.max()) == 1
    runs = [
        fit_classifier(
            lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)),
            images,
            steps=60,
            batch=64,
            learning_rate=0.03,
            seed=3,
        )
        for _ in range(2)
    ]
    assert accuracy(runs[0], images) > 85
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True))


def test_materialised_attention_gives_what_the_module_gives() -> None:
    block, x = transformer_block(), torch.randn(1, 7, 256)
    with torch.no_grad():
        torch.testing.assert_close(materialised(block)(x), block(x), rtol=1e-4, atol=1e-4)
