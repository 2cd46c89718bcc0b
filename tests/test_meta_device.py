"""Networks without memory for their weights."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import regard
from regard.meta_device import sizes_only
from regard.registry import get_class


@pytest.mark.parametrize("name", [name for name in regard.systems("model") if hasattr(get_class(name), "SMALL")])
def test_networks_have_their_sizes(name: str) -> None:
    cls: Any = get_class(name)
    whole = cls(cls.SMALL).state_dict()
    with sizes_only():
        planned = cls(cls.SMALL).state_dict()
    assert {key: (x.shape, x.dtype) for key, x in planned.items()} == {k: (x.shape, x.dtype) for k, x in whole.items()}
    assert all(x.is_meta for x in planned.values())


def test_a_forward_has_its_shape_and_no_gradient() -> None:
    with sizes_only():
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Conv2d(5, 7, 5))
        y = net(torch.empty(2, 3, 11, 13))
    assert (tuple(y.shape), y.is_meta, y.requires_grad) == ((2, 7, 5, 7), True, False)


def test_real_tensors_inside_are_still_filled() -> None:
    with sizes_only():
        x = torch.zeros(3, device="cpu")
        x.add_(2)
        nn.init.ones_(x[:1])
    assert x.tolist() == [1, 2, 2]


def test_operations_that_change_a_shape_do() -> None:
    with sizes_only():
        x = torch.empty(3, 5)
        x.unsqueeze_(0).transpose_(0, 2)
    assert tuple(x.shape) == (5, 3, 1)


def test_the_compiler_is_not_imported() -> None:
    program = """
import sys
from regard.meta_device import sizes_only
from regard.models.vision.maxvit import MaxViT
with sizes_only():
    MaxViT(MaxViT.VARIANTS["maxvit_tiny"].config).state_dict()
assert "torch._dynamo" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
