"""Generated heads for claims: batches, slabs that come back to their places, and what counts as found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regard.claims._brain_volumes import (
    SMALLEST_PART,
    THICKNESS,
    Brains,
    brains,
    detection,
    fit_segmenter,
    predicted,
    predicted_by_slabs,
    slabs,
    whole,
)
from regard.models.medical.agunet import AGUNet, AGUNetConfig

HEADS = brains(3, first_seed=5, size=32)


class Brightness(nn.Module):
    """The mass is what is brighter than a value, voxel by voxel."""

    smallest = 24

    def forward(self, x: Tensor) -> Tensor:
        assert min(x.shape[2:]) >= self.smallest
        return torch.cat((0.5 - x, x - 0.5), dim=1)


def test_heads_come_from_their_seeds() -> None:
    assert HEADS.images.shape == (3, 1, 32, 32, 32)
    assert torch.equal(HEADS.images[1], brains(1, first_seed=6, size=32).images[0])
    assert HEADS.masks.dtype == torch.int64
    assert HEADS.shares().tolist() == pytest.approx([float(mask.double().mean()) for mask in HEADS.masks])


def test_images_and_masks_are_flipped_together() -> None:
    marked = Brains(HEADS.masks[:, None].float(), HEADS.masks)
    seen = set()
    for seed in range(12):
        images, masks = whole(marked, torch.tensor([2, 0]), np.random.default_rng(seed))
        assert torch.equal(images[:, 0], masks.float())
        assert torch.equal(masks.sum(dim=(1, 2, 3)), HEADS.masks[[2, 0]].sum(dim=(1, 2, 3)))
        seen.add(masks.numpy().tobytes())
    assert len(seen) > 3


def test_slabs_know_their_own_slices_alone() -> None:
    marked = Brains(HEADS.masks[:, None].float(), HEADS.masks)
    for seed in range(5):
        images, masks = slabs(24)(marked, torch.tensor([0, 1]), np.random.default_rng(seed))
        assert images.shape == (4, 1, 32, 32, 24)
        assert torch.equal(images[:, 0], masks.float())
        assert (images[..., :8] == images[..., 8:9]).all()
        assert (images[..., 16:] == images[..., 15:16]).all()
        # every second slab meets the mass
        assert masks[1].any()
        assert masks[3].any()


def test_slab_by_slab_is_voxel_by_voxel_for_a_network_without_neighbours() -> None:
    network = Brightness()
    assert THICKNESS == 8
    assert torch.equal(predicted_by_slabs(network, HEADS), predicted(network, HEADS))  # type: ignore[arg-type]
    assert torch.equal(predicted(network, HEADS), HEADS.images[:, 0] > 0.5)


def test_what_is_found_is_counted() -> None:
    truth = torch.zeros(4, 12, 12, 12, dtype=torch.int64)
    truth[:, 2:5, 2:5, 2:5] = 1
    heads = Brains(torch.zeros(4, 1, 12, 12, 12), truth)
    masks = truth.bool().clone()
    masks[1] = False
    masks[2, 7:10, 7:10, 7:10] = True
    masks[3, 7:9, 7:9, 7:9] = True
    found = detection(masks, heads)
    assert SMALLEST_PART == 20
    assert found.found == (True, False, True, True)
    assert found.false == (0, 0, 1, 0)
    assert found.dice == pytest.approx((1.0, 0.0, 2 / 3, 54 / 62))
    assert found.mean_dice == pytest.approx(sum(found.dice) / 4)
    assert found.f1 == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert found.recall(torch.tensor([True, True, False, False])) == 0.5


@pytest.mark.slow
def test_training_depends_on_the_seed_alone() -> None:
    def build() -> AGUNet:
        return AGUNet(AGUNetConfig(filters=(3, 4), norm_momentum=0.1))

    heads = Brains(HEADS.images[..., 4:28], HEADS.masks[..., 4:28])
    models = [fit_segmenter(build, heads, steps=3, batch=1, learning_rate=1e-2, seed=2) for _ in range(2)]
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, other)
    assert not models[0].training
