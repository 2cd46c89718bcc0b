"""DaViT's channel attention against the formula with matrices written out, and the authors' layout."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.mixers.channel.davit_channel import DaViTChannelAttention


def by_groups(mixer: DaViTChannelAttention, x: torch.Tensor) -> torch.Tensor:
    """Group by group: (softmax(K^T V / sqrt(width)) Q^T)^T."""
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ mixer.qkv.weight.T + (0 if mixer.qkv.bias is None else mixer.qkv.bias)).chunk(3, dim=-1)
    width = x.shape[1] // mixer.num_groups
    mixed = []
    for group in range(mixer.num_groups):
        own = slice(group * width, (group + 1) * width)
        affinity = (k[..., own].transpose(1, 2) @ v[..., own] / width**0.5).softmax(dim=-1)
        mixed.append((affinity @ q[..., own].transpose(1, 2)).transpose(1, 2))
    out = torch.cat(mixed, dim=-1) @ mixer.o_proj.weight.T + mixer.o_proj.bias
    return out.transpose(1, 2).unflatten(2, x.shape[2:])


@pytest.mark.parametrize(("channels", "groups", "bias"), [(15, 3, True), (7, 1, False), (6, 6, True)])
@pytest.mark.parametrize("space", [(11,), (5, 7), (2, 3, 5), (1, 1)])
def test_is_the_formula(channels: int, groups: int, bias: bool, space: tuple[int, ...]) -> None:
    mixer = DaViTChannelAttention(channels, num_groups=groups, qkv_bias=bias).double()
    x = torch.randn(2, channels, *space, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_groups(mixer, x))


def test_gradients_are_those_of_the_formula() -> None:
    mixer = DaViTChannelAttention(6, num_groups=2).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_groups(mixer, x) * weights).sum(), leaves))


def test_every_position_reaches_every_other() -> None:
    mixer = DaViTChannelAttention(6, num_groups=2).double()
    x = torch.randn(1, 6, 3, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(x)[0, :, 0, 0].sum(), x)
    assert (gradient.abs().amax(dim=1) > 0).all()


def test_affinities_are_distributions_over_channels() -> None:
    shown = DaViTChannelAttention(15, num_groups=3).affinity(torch.randn(2, 15, 5, 7))
    assert shown.shape == (2, 3, 5, 5)
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(2, 3, 5))


def test_sums_over_many_positions_are_kept_in_float32() -> None:
    mixer = DaViTChannelAttention(8, num_groups=2)
    x = torch.randn(1, 8, 96, 97)
    with torch.no_grad():
        expected, actual = mixer.affinity(x), mixer.bfloat16().affinity(x.bfloat16())
    assert actual.dtype == torch.float32
    assert float((actual - expected).norm() / expected.norm()) < 0.02


def test_loads_the_authors_layout_strictly() -> None:
    mixer = DaViTChannelAttention(6, num_groups=2)
    layout = {name.replace("o_proj", "proj"): torch.rand_like(value) for name, value in mixer.state_dict().items()}
    mixer.load_reference(layout)
    assert torch.equal(mixer.o_proj.weight, layout["proj.weight"])
    with pytest.raises(KeyError, match=r"unknown keys: gamma"):
        mixer.load_reference({**layout, "gamma": torch.zeros(1)})


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="num_groups must divide channels=6, got 4"):
        regard.create("davit_channel", channels=6, num_groups=4)
