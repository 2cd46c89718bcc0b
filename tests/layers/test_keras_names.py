"""Keras' variables of volumes: layers are matched by the order of their numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from regard.layers.keras_names import from_keras

ORDER = {"conv3d": ["first", "last"], "conv3d_transpose": ["grow"], "batch_normalization": ["norm"], "odd": ["scale"]}
ODD = {"odd": {"gamma": ("gamma", (0,))}}


def network() -> nn.ModuleDict:
    scale = nn.Module()
    scale.gamma = nn.Parameter(torch.zeros(1))
    return nn.ModuleDict(
        {
            "first": nn.Conv3d(2, 3, (1, 2, 3)),
            "last": nn.Conv3d(3, 5, 1),
            "grow": nn.ConvTranspose3d(5, 2, (3, 1, 2)),
            "norm": nn.BatchNorm3d(3),
            "scale": scale,
        }
    )


def variables(first: str, last: str) -> dict[str, Tensor]:
    """As a Keras file holds them, the later layer first."""
    return {
        f"conv3d_{last}.kernel": torch.randn(1, 1, 1, 3, 5),
        f"conv3d_{last}.bias": torch.randn(5),
        f"conv3d{first}.kernel": torch.randn(1, 2, 3, 2, 3),
        f"conv3d{first}.bias": torch.randn(3),
        "conv3d_transpose_7.kernel": torch.randn(3, 1, 2, 2, 5),
        "conv3d_transpose_7.bias": torch.randn(2),
        **{f"batch_normalization_3.{leaf}": torch.rand(3) for leaf in ("gamma", "beta", "moving_mean")},
        "batch_normalization_3.moving_variance": torch.rand(3),
        "odd.gamma": torch.randn(1),
    }


@pytest.mark.parametrize(("first", "last"), [("", "1"), ("_2", "11"), ("_98", "100")])
def test_numbers_may_have_gaps_and_begin_anywhere(first: str, last: str) -> None:
    net, given = network(), variables(first, last)
    found = from_keras(given, ORDER, net.state_dict(), more=ODD)
    net.load_state_dict(found)
    kernel = given[f"conv3d{first}.kernel"]
    assert torch.equal(net["first"].weight[2, 1, 0, 1, 2], kernel[0, 1, 2, 1, 2])
    assert torch.equal(net["grow"].weight[4, 1, 2, 0, 1], given["conv3d_transpose_7.kernel"][2, 0, 1, 1, 4])
    assert torch.equal(net["norm"].running_var, given["batch_normalization_3.moving_variance"])
    assert torch.equal(net["scale"].gamma, given["odd.gamma"])


def test_what_does_not_fit_is_named() -> None:
    own, given = network().state_dict(), variables("", "1")
    for name in ("conv3d_2.kernel", "conv3d.scale", "dense.kernel", "whatever"):
        with pytest.raises(KeyError, match=f"unknown keys: {name}"):
            from_keras({**given, name: torch.zeros(1)}, ORDER, own, more=ODD)
    with pytest.raises(KeyError, match=r"missing keys: norm\.weight"):
        from_keras({n: t for n, t in given.items() if not n.endswith("3.gamma")}, ORDER, own, more=ODD)
    with pytest.raises(KeyError, match=r"unknown keys: odd\.gamma; missing keys: scale\.gamma"):
        from_keras(given, ORDER, own)
    with pytest.raises(ValueError, match=r"conv3d\.kernel has shape \(1, 2, 3, 2, 4\)"):
        from_keras({**given, "conv3d.kernel": torch.zeros(1, 2, 3, 2, 4)}, ORDER, own, more=ODD)
