from __future__ import annotations

import numpy as np
import pytest
import torch

from regard.tasks.radiographs.augmentation import RadiographAugmentation

STILL = {"translation": 0.0, "rotation": 0.0, "zoom": 0.0, "intensity": 0.0, "flip": False}


def views(images: torch.Tensor, seed: int = 0, **changes) -> torch.Tensor:
    return RadiographAugmentation(**{**STILL, **changes}).views(images, np.random.default_rng(seed))


def test_without_any_change_a_view_is_the_image() -> None:
    images = torch.randn(3, 2, 13, 13)
    torch.testing.assert_close(views(images), images, rtol=0, atol=1e-5)


def test_half_of_the_views_are_mirrored() -> None:
    images = torch.randn(64, 1, 7, 7)
    found = views(images, flip=True)
    mirrored = [bool((view - image.flip(2)).abs().max() < 1e-5) for view, image in zip(found, images, strict=True)]
    assert 16 < sum(mirrored) < 48
    for view, image, is_mirrored in zip(found, images, mirrored, strict=True):
        torch.testing.assert_close(view, image.flip(2) if is_mirrored else image, rtol=0, atol=1e-5)


def spot(size: int = 41) -> torch.Tensor:
    """A bright spot to the right of the middle."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.exp(-((y - 20) ** 2 + (x - 30) ** 2) / 8.0)[None, None]


def middle(images: torch.Tensor) -> torch.Tensor:
    """The centre of brightness of each, in pixels from the image's own: down, right."""
    mass = images[:, 0] / images[:, 0].sum(dim=(1, 2), keepdim=True)
    places = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    return torch.stack(((mass.sum(2) * places).sum(1), (mass.sum(1) * places).sum(1)), dim=1)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"translation": 0.1}, lambda m: (m - torch.tensor([0.0, 10.0])).abs().amax(0)),
        ({"rotation": 10.0}, lambda m: torch.rad2deg(torch.atan2(m[:, 0], m[:, 1])).abs().amax(0, keepdim=True)),
        ({"zoom": 0.15}, lambda m: (m[:, 1] / 10 - 1).abs().amax(0, keepdim=True)),
    ],
    ids=["translation", "rotation", "zoom"],
)
def test_changes_reach_as_far_as_they_may(changes: dict[str, float], check) -> None:
    ((name, largest),) = changes.items()
    limit = largest * (41 if name == "translation" else 1)
    reached = check(middle(views(spot().expand(200, -1, -1, -1), **changes)))
    assert (reached <= 1.05 * limit).all()
    assert (reached >= 0.8 * limit).all()


def test_turned_views_keep_their_distances() -> None:
    found = middle(views(spot().expand(50, -1, -1, -1), rotation=90.0))
    torch.testing.assert_close(found.norm(dim=1), torch.full((50,), 10.0), rtol=0.03, atol=0)


def test_contrast_and_brightness_change_every_image_by_itself() -> None:
    images = torch.linspace(-1, 1, 25).view(1, 1, 5, 5).expand(300, -1, -1, -1)
    found = views(images, intensity=0.1).flatten(1)
    contrast, brightness = (found[:, -1] - found[:, 0]) / 2, found.mean(dim=1)
    for values, about in ((contrast, 1.0), (brightness, 0.0)):
        assert float((values - about).abs().max()) <= 0.1001
        assert float((values - about).abs().max()) > 0.09
    assert float(torch.corrcoef(torch.stack((contrast, brightness)))[0, 1].abs()) < 0.2


def test_views_depend_on_the_generator_alone() -> None:
    images = torch.randn(4, 1, 9, 9)
    everything = {"translation": 0.1, "rotation": 10.0, "zoom": 0.15, "intensity": 0.1, "flip": True}
    assert torch.equal(views(images, 5, **everything), views(images, 5, **everything))
    assert not torch.equal(views(images, 5, **everything), views(images, 6, **everything))
    assert views(images.double(), **everything).dtype == torch.float64
