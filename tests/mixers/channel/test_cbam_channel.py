"""CBAM's attention on channels against its formula, timm's module and every layout that it loads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.mixers.channel.cbam_channel import CBAMChannel, cbam_hidden
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation


def gate_by_sequences(x: torch.Tensor, mixer: CBAMChannel) -> torch.Tensor:
    """The paper's equation with modules of PyTorch."""
    layers = nn.Sequential(mixer.down_proj, nn.ReLU(), mixer.up_proj)
    flat = x.flatten(2)
    return torch.sigmoid(layers(flat.mean(dim=2)) + layers(flat.max(dim=2).values))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("space", [(11,), (5, 7), (2, 3, 5)])
def test_is_the_formula(space: tuple[int, ...], bias: bool) -> None:
    mixer = CBAMChannel(17, reduction=3, bias=bias).double()
    x = torch.randn(3, 17, *space, dtype=torch.float64)
    gate = gate_by_sequences(x, mixer)
    torch.testing.assert_close(mixer.gate(x).flatten(1), gate)
    torch.testing.assert_close(mixer(x), x * gate.view(3, 17, *[1] * len(space)))


def test_gradients_are_those_of_the_formula() -> None:
    mixer = CBAMChannel(13, hidden=5).double()
    x = torch.randn(2, 13, 5, 7, dtype=torch.float64, requires_grad=True)
    weights, wanted = torch.randn_like(x), (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), wanted)
    theirs = torch.autograd.grad((x * gate_by_sequences(x, mixer)[:, :, None, None] * weights).sum(), wanted)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("channels", "hidden"), [(16, 4), (24, 4), (40, 4), (80, 5), (112, 7), (320, 20), (256, 16)])
def test_the_inner_width_is_a_sixteenth_and_at_least_4(channels: int, hidden: int) -> None:
    mixer = CBAMChannel(channels)
    assert mixer.down_proj.out_features == cbam_hidden(channels, 16) == hidden
    assert sum(parameter.numel() for parameter in mixer.parameters()) == 2 * channels * hidden
    assert CBAMChannel.macs(batch=3, space=(9, 9), channels=channels) == 9 * channels * hidden


def test_equals_timms_module() -> None:
    cbam = pytest.importorskip("timm.layers.cbam")
    theirs, ours = cbam.ChannelAttn(80), CBAMChannel(80)
    ours.load_reference(theirs.state_dict())
    x = torch.randn(2, 80, 7, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_its_average_branch_is_squeeze_and_excitation() -> None:
    mixer, squeeze = CBAMChannel(24), SqueezeExcitation(24, hidden=4)
    squeeze.load_state_dict(mixer.state_dict())
    # of a constant map the mean is the maximum
    x = torch.randn(2, 24, 1, 1).expand(-1, -1, 5, 3)
    scores = torch.logit(squeeze.gate(x)).double()
    torch.testing.assert_close(mixer.gate(x).double(), torch.sigmoid(2 * scores), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names", [("mlp.0", "mlp.2"), ("mlp.1", "mlp.3"), ("fc1", "fc2"), ("down_proj", "up_proj")])
@pytest.mark.parametrize("ones", [(), (1, 1), (1, 1, 1)], ids=["linear", "2d", "3d"])
def test_loads_every_layout(names: tuple[str, str], ones: tuple[int, ...]) -> None:
    down, up = torch.randn(5, 80), torch.randn(80, 5)
    mixer = CBAMChannel(80)
    mixer.load_reference(
        {f"{name}.weight": weight.view(*weight.shape, *ones) for name, weight in zip(names, (down, up), strict=True)}
    )
    assert torch.equal(mixer.down_proj.weight, down)
    assert torch.equal(mixer.up_proj.weight, up)


def test_loads_strictly() -> None:
    mixer = CBAMChannel(80)
    layout = {"mlp.0.weight": torch.zeros(5, 80, 1, 1), "mlp.2.weight": torch.zeros(80, 5, 1, 1)}
    with pytest.raises(KeyError, match=r"missing keys: up_proj\.weight"):
        mixer.load_reference({"mlp.0.weight": layout["mlp.0.weight"]})
    with pytest.raises(KeyError, match=r"unknown keys: down_proj\.bias"):
        mixer.load_reference({**layout, "mlp.0.bias": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"must be \(5, 80\)"):
        mixer.load_reference({**layout, "mlp.0.weight": torch.zeros(5, 80, 3, 3)})


def test_channels_last_stays_channels_last() -> None:
    mixer = CBAMChannel(12)
    x = torch.randn(2, 12, 5, 7)
    y = mixer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, mixer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be positive, got 0"),
        ({"channels": 8, "reduction": 0}, "reduction must be positive, got 0"),
        ({"channels": 8, "hidden": 0}, "hidden must be positive, got 0"),
    ],
    ids=["channels", "reduction", "hidden"],
)
def test_ill_options_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CBAMChannel(**options)


def test_ill_input_is_named() -> None:
    mixer = CBAMChannel(8)
    with pytest.raises(ValueError, match="9 channels and the mixer has 8"):
        mixer.gate(torch.randn(2, 9, 3, 3))
    with pytest.raises(ValueError, match="takes no context"):
        mixer(torch.randn(2, 8, 3), context=torch.randn(2, 8, 3))
