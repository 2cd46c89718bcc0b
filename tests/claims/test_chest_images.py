from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from regard.claims import _chest_images
from regard.claims._chest_images import NETWORKS, Chests, map_quality, parameters, trained
from regard.claims._small_images import Images
from regard.models.medical.medusa import Medusa


def tiny() -> Chests:
    """Eight images whose lungs are the left half, with a lesion at the top of it."""
    lungs = torch.zeros(8, 1, 64, 64, dtype=torch.bool)
    lungs[..., :32] = True
    lesions = lungs.clone()
    lesions[:, :, 16:] = False
    images = torch.randn(8, 1, 64, 64)
    labels = torch.tensor([0, 1] * 4)
    return Chests(Images(images, labels, images, labels), lungs, lungs, lesions)


@pytest.fixture
def few(monkeypatch) -> Chests:
    found = tiny()
    monkeypatch.setattr(_chest_images, "chests", lambda: found)
    return found


def test_networks_are_equal_in_parameters() -> None:
    counts = {name: parameters(config) for name, config in NETWORKS.items()}
    assert all(abs(count / counts["MEDUSA"] - 1) <= 0.05 for count in counts.values()), counts


def test_maps_are_judged_by_where_they_are_high(few) -> None:
    model = Medusa(replace(Medusa.SMALL, num_classes=2)).eval()

    class Known(torch.nn.Module):
        def forward(self, images, *, apply):
            return torch.where(few.test_lungs[:, :, ::2, ::2], 4.0, -4.0) + 0 * images[:, :, ::2, ::2]

    model.bodies[0] = Known()
    inside, lesion, correlation = map_quality(model)
    expected = (1 + torch.tensor(4.0).exp()) / (1 + torch.tensor(-4.0).exp())
    assert inside == pytest.approx(float(expected), rel=1e-4)
    assert lesion == pytest.approx(float(expected), rel=1e-4)
    assert -1 <= correlation <= 1


def test_a_first_phase_changes_the_body_that_training_starts_from(few, monkeypatch) -> None:
    monkeypatch.setattr(_chest_images, "STEPS", 1)
    monkeypatch.setattr(_chest_images, "BATCH", 4)
    monkeypatch.setattr(_chest_images, "BODY_STEPS", 30)
    one = trained.__wrapped__("MEDUSA", 0)
    two = trained.__wrapped__("MEDUSA", 0, two_phases=True)
    assert map_quality(two)[0] > map_quality(one)[0]
    assert not torch.equal(one.body.out.weight, two.body.out.weight)
