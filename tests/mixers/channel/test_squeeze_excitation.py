"""SE and its variants against matrices written out, against torchvision's SE, and against each other."""

from __future__ import annotations

import pytest
import torch

from regard.layers.channel_gate import ChannelGate
from regard.mixers.channel.squeeze_excitation import SEGroupConv, SEVar1, SEVar2, SEVar3, SqueezeExcitation

ALL = (SqueezeExcitation, SEVar1, SEVar2, SEVar3, SEGroupConv)


def gated(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(W g), image by image and channel by channel."""
    y = torch.empty_like(x)
    for row in range(x.shape[0]):
        pooled = torch.stack([x[row, channel].mean() for channel in range(x.shape[1])])
        for channel in range(x.shape[1]):
            y[row, channel] = x[row, channel] * torch.sigmoid((matrix[channel] * pooled).sum())
    return y


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 15, 5, 7, dtype=torch.float64)


def test_variants_are_matrices_of_their_form(x: torch.Tensor) -> None:
    var1, var2, var3 = SEVar1(15).double(), SEVar2(15).double(), SEVar3(15).double()
    grouped = SEGroupConv(15, groups=5).double()
    with torch.no_grad():
        torch.testing.assert_close(var1(x), gated(x, torch.eye(15, dtype=torch.float64)))
        torch.testing.assert_close(var2(x), gated(x, torch.diag(var2.weight)))
        torch.testing.assert_close(var3(x), gated(x, var3.proj.weight))
        torch.testing.assert_close(grouped(x), gated(x, torch.block_diag(*grouped.weight)))


@pytest.mark.parametrize("bias", [False, True])
def test_se_is_the_formula(x: torch.Tensor, bias: bool) -> None:
    mixer = SqueezeExcitation(15, reduction=4, bias=bias).double()
    down, up = mixer.down_proj, mixer.up_proj
    pooled = x.mean(dim=(2, 3))
    hidden = pooled @ down.weight.t() + (down.bias if bias else 0)
    scores = hidden.clamp(min=0) @ up.weight.t() + (up.bias if bias else 0)
    assert down.weight.shape == (3, 15)
    torch.testing.assert_close(mixer(x), x * torch.sigmoid(scores)[..., None, None])


def test_se_equals_torchvisions() -> None:
    ops = pytest.importorskip("torchvision.ops")
    theirs, ours = ops.SqueezeExcitation(48, 3), SqueezeExcitation(48, bias=True)
    with torch.no_grad():
        for own, other in ((ours.down_proj, theirs.fc1), (ours.up_proj, theirs.fc2)):
            own.weight.copy_(other.weight.flatten(1))
            own.bias.copy_(other.bias)
    x = torch.randn(2, 48, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("channels", [1, 2, 16, 24, 64])
def test_parameters_are_those_of_the_paper(channels: int) -> None:
    def count(mixer: ChannelGate) -> int:
        return sum(parameter.numel() for parameter in mixer.parameters())

    groups = SEGroupConv(channels).groups
    assert channels % groups == 0
    assert count(SqueezeExcitation(channels)) == 2 * channels * max(1, channels // 16)
    assert count(SEVar1(channels)) == 0
    assert count(SEVar2(channels)) == channels
    assert count(SEVar3(channels)) == channels**2
    assert count(SEGroupConv(channels)) == channels**2 // groups


def test_groups_by_default() -> None:
    assert [SEGroupConv(channels).groups for channels in (64, 24, 9)] == [16, 8, 1]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_bfloat16_and_extreme_values(cls: type[ChannelGate]) -> None:
    mixer = cls(16)  # type: ignore[call-arg]
    x = torch.randn(2, 16, 11, 13)
    low = cls(16).bfloat16()  # type: ignore[call-arg]
    low.load_state_dict(mixer.state_dict())
    with torch.no_grad():
        expected, actual = mixer(x), low(x.bfloat16())
    assert actual.dtype == torch.bfloat16
    assert float((actual.float() - expected).norm() / expected.norm()) < 0.02
    assert mixer(1e25 * x).isfinite().all()
    assert mixer(torch.zeros_like(x)).abs().max() == 0


def test_ill_options_are_named() -> None:
    with pytest.raises(ValueError, match="reduction must be positive, got 0"):
        SqueezeExcitation(16, reduction=0)
    with pytest.raises(ValueError, match="groups=5 and channels=16"):
        SEGroupConv(16, groups=5)
    with pytest.raises(ValueError, match="groups=0 and channels=16"):
        SEGroupConv(16, groups=0)
    for cls in ALL:
        with pytest.raises(ValueError, match="channels must be positive, got 0"):
            cls(0)


def test_an_inner_width_and_silu_as_in_efficientnet() -> None:
    mixer = SqueezeExcitation(7, hidden=3, bias=True, activation="silu").double()
    x = torch.randn(2, 7, 5, 4, dtype=torch.float64)
    hidden = mixer.down_proj(x.mean(dim=(2, 3)))
    gate = mixer.up_proj(hidden * hidden.sigmoid()).sigmoid()
    torch.testing.assert_close(mixer(x), x * gate[:, :, None, None])
    assert mixer.down_proj.weight.shape == (3, 7)
    assert SqueezeExcitation.macs(batch=2, space=(5, 4), channels=7, hidden=3) == 2 * 2 * 7 * 3
    with pytest.raises(ValueError, match="hidden must be positive, got 0"):
        SqueezeExcitation(16, hidden=0)
    with pytest.raises(ValueError, match="activation must be one of relu, silu, got 'gelu'"):
        SqueezeExcitation(16, activation="gelu")  # type: ignore[arg-type]
