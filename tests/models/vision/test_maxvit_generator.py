"""The generator: sizes, who attends, gradients, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from regard.layers.relative_attention import RelativeAttention
from regard.models.vision.maxvit_generator import MaxViTGenerator, MaxViTGeneratorConfig

SMALL = MaxViTGeneratorConfig(
    latent_dim=5,
    out_channels=3,
    dims=(12, 6, 6),
    start_size=3,
    window_size=2,
    head_dim=3,
    expand_ratio=1,
    mlp_ratio=1.5,
)


def test_every_stage_but_the_first_doubles_the_sides() -> None:
    assert SMALL.image_size == 12
    images = MaxViTGenerator(SMALL)(torch.randn(2, 5))
    assert images.shape == (2, 3, 12, 12)
    assert images.abs().max() <= 1
    assert MaxViTGeneratorConfig().image_size == 8


def test_attends_across_the_map_before_it_attends_nearby() -> None:
    model = MaxViTGenerator(SMALL)
    layouts = [type(part).layout for part in model.modules() if isinstance(part, RelativeAttention)]
    assert layouts == ["grid", "window"] * 3


def test_without_attention_all_else_remains() -> None:
    model, plain = MaxViTGenerator(SMALL), MaxViTGenerator(replace(SMALL, attention=False))
    assert not [part for part in plain.modules() if isinstance(part, RelativeAttention)]
    own = {name for name in model.state_dict() if ".mixer" not in name}
    assert set(plain.state_dict()) == own
    assert plain(torch.randn(2, 5)).shape == (2, 3, 12, 12)


def test_gradients_reach_every_parameter() -> None:
    model = MaxViTGenerator(SMALL)
    images = model(torch.randn(3, 5))
    (images * torch.randn_like(images)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_images_of_a_batch_do_not_depend_on_each_other() -> None:
    model = MaxViTGenerator(SMALL).double().eval()
    latents = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(model(latents)[1:2], model(latents[1:2]))


def test_ill_latents_are_named() -> None:
    with pytest.raises(ValueError, match=r"latents must have shape \(batch, 5\), got \(2, 6\)"):
        MaxViTGenerator(SMALL)(torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be positive, got 0"),
        ({"window_size": 0}, "window_size must be positive, got 0"),
        ({"dims": ()}, "dims must have a positive number for each stage"),
        ({"dims": (6, 8)}, "head_dim=3 must divide the width of every stage, got 8"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive, got 0.0"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)
