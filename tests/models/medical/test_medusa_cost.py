from __future__ import annotations

from dataclasses import replace

import pytest

from regard.models.medical.medusa import Medusa
from regard.models.medical.medusa_cost import cost_by_part


def test_parts_of_the_released_model() -> None:
    found = cost_by_part(Medusa.VARIANTS["medusa_resnet50"].config, image_size=480)
    assert {name: part.params for name, part in found.items()} == {
        "trunk": 23_512_130,
        "bodies": 5_944_373,
        "heads": 276_868,
    }
    macs = {name: part.macs / 1e9 for name, part in found.items()}
    # the body's 3x3 convolutions take 7.77, its transposed ones 0.36
    assert macs == pytest.approx({"trunk": 18.77, "bodies": 8.13, "heads": 0.50}, abs=0.005)


def test_other_networks_have_a_trunk_alone() -> None:
    cbam = cost_by_part(replace(Medusa.SMALL, attention="cbam"), image_size=64)
    plain = cost_by_part(replace(Medusa.SMALL, attention="none"), image_size=64)
    for found in (cbam, plain):
        assert found["bodies"].params == found["bodies"].macs == found["heads"].params == found["heads"].macs == 0
    assert cbam["trunk"].params > plain["trunk"].params
