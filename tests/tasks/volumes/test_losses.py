from __future__ import annotations

import math

import pytest
import torch

from regard.tasks.volumes.losses import class_loss, region_loss


def test_the_loss_of_regions_is_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 5, 7, generator=generator)
    target = (torch.rand(3, 2, 5, 7, generator=generator) < 0.3).float()
    target[1, 0] = 0
    made = region_loss(logits, target)
    dice, bce = 0.0, 0.0
    for image in range(3):
        for region in range(2):
            p, t = logits[image, region].sigmoid(), target[image, region]
            dice += 1 - float((2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
            bce -= float((t * p.log() + (1 - t) * (1 - p).log()).mean())
    assert float(made.dice) == pytest.approx(dice / 6, rel=1e-5)
    assert float(made.bce) == pytest.approx(bce / 6, rel=1e-4)
    assert float(made.total) == pytest.approx(float(made.dice + made.bce), rel=1e-6)
    assert float(region_loss(logits, target, bce_weight=0.0).total) == pytest.approx(dice / 6, rel=1e-5)


def test_the_loss_of_classes_leaves_the_background_out_and_sees_coarser_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 4, 4, 6), generator=generator)
    fine, coarse = (torch.randn(2, 3, *space, generator=generator) for space in ((4, 4, 6), (2, 2, 3)))

    def expected(logits, labels):
        p, total = logits.softmax(dim=1), 0.0
        for label in (1, 2):
            t = (labels == label).float()
            total += 1 - float((2 * (p[:, label] * t).sum() + 1) / ((p[:, label] ** 2).sum() + t.sum() + 1))
        return total / 2

    both = (expected(fine, target) + expected(coarse, target[:, ::2, ::2, ::2])) / 2
    assert float(class_loss([fine, coarse], target)) == pytest.approx(both, rel=1e-5)


def test_a_cross_entropy_can_be_added() -> None:
    logits, target = torch.zeros(1, 2, 3, 3, 3), torch.zeros(1, 3, 3, 3, dtype=torch.long)
    alone = class_loss([logits], target)
    assert float(class_loss([logits], target, cross_entropy_weight=2.0) - alone) == pytest.approx(
        2 * math.log(2), rel=1e-5
    )


def test_one_class_is_no_choice() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        class_loss([torch.zeros(1, 1, 2, 2, 2)], torch.zeros(1, 2, 2, 2, dtype=torch.long))
