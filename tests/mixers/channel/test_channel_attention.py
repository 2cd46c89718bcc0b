"""DANet's channel attention against matrices written out, in both orientations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.mixers.channel.channel_attention import DANetChannelAttention


def authors(x: Tensor, gamma: Tensor) -> Tensor:
    """The meningioma network's layer: positions times the softmax of the Gram matrix over its last axis."""
    a = x.flatten(2).transpose(1, 2)
    return (gamma * (a @ (a.transpose(1, 2) @ a).softmax(dim=-1)) + a).transpose(1, 2).view_as(x)


def danet(x: Tensor, gamma: Tensor) -> Tensor:
    """DANet's module: the softmax of the distance to each row's maximum, times channels."""
    rows = x.flatten(2)
    energy = rows @ rows.transpose(1, 2)
    weights = (energy.max(dim=-1, keepdim=True)[0] - energy).softmax(dim=-1)
    return (gamma * (weights @ rows)).view_as(x) + x


@pytest.mark.parametrize("space", [(5, 7), (2, 3, 5), (1, 1)])
@pytest.mark.parametrize("channels", [11, 1])
def test_is_both_formulas(channels: int, space: tuple[int, ...]) -> None:
    x = 0.2 * torch.randn(2, channels, *space, dtype=torch.float64)
    ours = DANetChannelAttention(channels, init_scale=-0.4).double()
    torch.testing.assert_close(ours(x), authors(x, ours.gamma))
    theirs = DANetChannelAttention(channels, max_subtraction=True, normalised_over="inputs", init_scale=0.3).double()
    torch.testing.assert_close(theirs(x), danet(x, theirs.gamma))


def test_gradients_are_those_of_the_formula() -> None:
    mixer = DANetChannelAttention(7, init_scale=0.5).double()
    x = (0.2 * torch.randn(2, 7, 3, 5, dtype=torch.float64)).requires_grad_()
    weights = torch.randn_like(x)
    ours = torch.autograd.grad((mixer(x) * weights).sum(), (x, mixer.gamma))
    torch.testing.assert_close(ours, torch.autograd.grad((authors(x, mixer.gamma) * weights).sum(), (x, mixer.gamma)))


def test_begins_as_the_identity() -> None:
    x = torch.randn(2, 8, 3, 5)
    assert torch.equal(DANetChannelAttention(8)(x), x)


def test_affinities_weigh_channels() -> None:
    mixer = DANetChannelAttention(7, init_scale=1.0)
    x = 0.1 * torch.randn(2, 7, 3, 5)
    shown = mixer.affinity(x)
    torch.testing.assert_close(shown.sum(dim=1), torch.ones(2, 7))
    torch.testing.assert_close(mixer(x), x + (shown @ x.flatten(2)).view_as(x))


def test_loads_its_only_parameter_strictly() -> None:
    mixer = DANetChannelAttention(7)
    mixer.load_reference({"gamma": torch.tensor([0.3])})
    assert mixer.gamma.item() == pytest.approx(0.3)
    with pytest.raises(KeyError, match="missing keys: gamma"):
        mixer.load_reference({})


def test_ill_options_are_named() -> None:
    with pytest.raises(ValueError, match="outputs or inputs, got 'rows'"):
        DANetChannelAttention(7, normalised_over="rows")  # type: ignore[arg-type]
