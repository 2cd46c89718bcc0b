from __future__ import annotations

import random as python_random

import numpy as np
import pytest
import torch
from PIL import Image

from regard.errors import UserError
from regard.tasks.images import augmentation
from regard.tasks.images.augmentation import Augmentation, Mixing, need_for_augmentation, seeded
from regard.tasks.task import rng


def copies(channels: int, count: int = 6) -> list[Image.Image]:
    random = np.random.default_rng(1)
    shape = (20, 26) if channels == 1 else (20, 26, 3)
    return [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


def plan(level: str = "light", channels: int = 3, *, flip: bool = True) -> Augmentation:
    return Augmentation(level=level, size=12, channels=channels, flip=flip)


@pytest.mark.parametrize("level", ["light", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_depend_on_the_generator_alone(level, channels):
    found = []
    for number in (5, 5, 6):
        # whatever was drawn before must not matter
        python_random.random()
        np.random.random()
        torch.rand(1)
        with seeded(rng(0, number)):
            views = plan(level, channels).views(copies(channels))
            noise = plan(level, channels).erased(torch.zeros(6, channels, 12, 12))
        found.append((views, noise))
    assert found[0][0].shape == (6, channels, 12, 12)
    assert found[0][0].dtype == np.uint8
    assert (found[0][0] == found[1][0]).all()
    assert torch.equal(found[0][1], found[1][1])
    assert not (found[0][0] == found[2][0]).all()


def test_the_global_generators_are_as_they_were():
    python_random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = python_random.random(), np.random.random(), float(torch.rand(()))
    python_random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with seeded(rng(3, 4)):
        python_random.random()
        np.random.random()
        torch.rand(3)
    assert (python_random.random(), np.random.random(), float(torch.rand(()))) == expected


def test_only_what_may_be_flipped_is_flipped():
    half = np.zeros((16, 16), dtype=np.uint8)
    half[:, 8:] = 255
    images = [Image.fromarray(half)] * 40
    for flip in (False, True):
        with seeded(rng(0, 0)):
            views = plan(channels=1, flip=flip).views(images)
        left_is_darker = views[:, 0, :, 0].mean(axis=1) <= views[:, 0, :, -1].mean(axis=1)
        assert left_is_darker.all() == (not flip)


def test_strong_augmentation_erases_rectangles_and_light_does_not():
    images = torch.zeros(200, 3, 12, 12)
    with seeded(rng(0, 0)):
        assert torch.equal(plan("light").erased(images.clone()), images)
        erased = plan("strong").erased(images.clone())
    share = float((erased != 0).flatten(1).any(dim=1).float().mean())
    assert 0.1 < share < 0.4


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("rows", [1, 5, 6])
def test_mixed_images_have_mixed_classes(mixup, cutmix, rows):
    images = torch.arange(rows).float()[:, None, None, None].expand(rows, 1, 8, 8).contiguous()
    labels = torch.arange(rows) % 3
    with seeded(rng(0, 2)):
        mixed, shares = Mixing(mixup, cutmix, 3).mixed(images, labels)
    assert mixed.shape == images.shape
    assert shares.shape == (rows, 3)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(rows))
    # a mean over pixels mixes as the classes do
    own, other = torch.arange(rows).float(), torch.arange(rows).float().roll(1)
    mean = mixed.mean(dim=(1, 2, 3))
    weight = ((mean - other) / (own - other)).nan_to_num(1.0)
    expected = torch.zeros(rows, 3)
    for row in range(rows):
        expected[row, labels[row]] += weight[row]
        expected[row, labels.roll(1)[row]] += 1 - weight[row]
    torch.testing.assert_close(shares, expected, atol=1e-5, rtol=0)


def test_both_mixtures_take_turns():
    images = torch.rand(4, 1, 8, 8)
    mixing = Mixing(1.0, 1.0, 4)
    cut = []
    for step in range(30):
        with seeded(rng(0, step)):
            mixed, _ = mixing.mixed(images, torch.arange(4))
        other = images.roll(1, 0)
        cut.append(bool(((mixed == images) | (mixed == other)).all()))
    assert 5 < sum(cut) < 25


def test_nothing_is_mixed_unless_it_is_asked_for():
    assert not Mixing(0.0, 0.0, 3)
    assert Mixing(0.1, 0.0, 3)


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setattr(augmentation, "find_spec", lambda _: None)
    need_for_augmentation("none", mixes=False)
    for level, mixes, words in (("light", False, "augment=light"), ("none", True, "mixup and cutmix")):
        with pytest.raises(UserError, match=rf"{words} needs? torchvision: pip install 'regard\[vision\]'"):
            need_for_augmentation(level, mixes=mixes)
    monkeypatch.setattr(augmentation, "find_spec", lambda name: None if name == "timm" else name)
    with pytest.raises(UserError, match="augment=strong needs timm"):
        need_for_augmentation("strong", mixes=False)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_change_is_defined_at_its_strongest(channels):
    planned = plan("strong", channels)
    changes = planned._transform.transforms[-1].ops
    assert len(changes) > 10
    for change in changes:
        change.prob, change.magnitude = 1.0, 50
        with seeded(rng(0, 0)):
            assert change(copies(channels, 1)[0]).size == (26, 20), change.name
