"""Norms folded into their neighbours: the same function, without the norms that follow a convolution."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from regard.layers.residual_unit import ResidualUnit
from regard.layers.sibling_norms import fold_siblings


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))
    return module.eval()


@pytest.mark.parametrize("bias", [False, True])
def test_is_the_same_function(bias: bool) -> None:
    plain = randomised(nn.Sequential(nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5), nn.ReLU(), ResidualUnit(5, 7)))
    folded = copy.deepcopy(plain)
    fold_siblings(folded)
    x = torch.randn(2, 3, 11, 13)
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-4, atol=1e-4)
    # the norm before the unit's first convolution has an activation behind it, and stays
    assert [type(part) for part in folded.modules()].count(nn.BatchNorm2d) == 1
    assert isinstance(folded[3].bn1, nn.BatchNorm2d)


def test_keeps_the_activation_of_timms_norms() -> None:
    timm = pytest.importorskip("timm.layers")
    plain = randomised(nn.Sequential(nn.Conv2d(3, 5, 1), timm.BatchNormAct2d(5)))
    folded = copy.deepcopy(plain)
    fold_siblings(folded)
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(folded(x), plain(x))
    assert float(folded(x).min()) == 0


def test_refuses_norms_in_training() -> None:
    with pytest.raises(ValueError, match="call eval"):
        fold_siblings(nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)).train())
