"""ECA against a one-dimensional convolution of PyTorch's own, its counts, and the authors' layout."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regard
from regard.layers.channel_gate import ChannelGate
from regard.mixers.channel.eca import ECA


def gate_by_convolution(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """The paper's equation with `conv1d` along the channels of the pooled vector."""
    pooled = x.flatten(2).mean(dim=2)[:, None]
    scores = F.conv1d(pooled, taps[None, None], padding=len(taps) // 2)
    return torch.sigmoid(scores[:, 0])


@pytest.mark.parametrize(("channels", "kernel_size"), [(17, 5), (13, 1), (7, 13), (19, None), (1, None)])
@pytest.mark.parametrize("space", [(11,), (5, 7), (2, 3, 5)])
def test_is_the_formula(channels: int, kernel_size: int | None, space: tuple[int, ...]) -> None:
    mixer = ECA(channels, kernel_size=kernel_size).double()
    x = torch.randn(3, channels, *space, dtype=torch.float64)
    gate = gate_by_convolution(x, mixer.taps)
    torch.testing.assert_close(mixer.gate(x).flatten(1), gate)
    torch.testing.assert_close(mixer(x), x * gate.view(3, channels, *[1] * len(space)))


def test_gradients_are_those_of_the_formula() -> None:
    mixer = ECA(13, kernel_size=5).double()
    x = torch.randn(2, 13, 5, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    ours = torch.autograd.grad((mixer(x) * weights).sum(), (x, mixer.taps))
    formula = x * gate_by_convolution(x, mixer.taps)[:, :, None, None]
    expected = torch.autograd.grad((formula * weights).sum(), (x, mixer.taps))
    torch.testing.assert_close(ours, expected)


def test_equals_timms_module() -> None:
    timm = pytest.importorskip("timm.layers.eca")
    for channels in (48, 256):
        theirs, ours = timm.EcaModule(channels), ECA(channels)
        assert theirs.conv.weight.shape == (1, 1, ours.kernel_size)
        ours.load_reference(theirs.state_dict())
        x = torch.randn(2, channels, 7, 5)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("channels", "kernel_size"), [(64, 3), (256, 5), (2048, 7)])
def test_has_as_many_parameters_as_taps(channels: int, kernel_size: int) -> None:
    mixer = ECA(channels)
    assert sum(parameter.numel() for parameter in mixer.parameters()) == mixer.kernel_size == kernel_size
    assert float(mixer.taps.detach().abs().max()) <= kernel_size**-0.5
    assert ECA.macs(batch=3, space=(9, 9), channels=channels) == 3 * channels * kernel_size


def test_adding_in_one_pass_is_adding() -> None:
    mixer = ECA(11).double()
    x, shortcut = torch.randn(2, 2, 11, 5, 7, dtype=torch.float64).unbind()
    torch.testing.assert_close(mixer.mix_and_add(x, shortcut), mixer(x) + shortcut)
    with pytest.raises(ValueError, match="11 channels"):
        ECA(7).mix_and_add(x, shortcut)


def test_loads_the_authors_layout_strictly() -> None:
    conv = nn.Conv1d(1, 1, 5, padding=2, bias=False)
    mixer = ECA(17, kernel_size=5)
    mixer.load_reference({"conv.weight": conv.weight})
    assert mixer.taps.tolist() == conv.weight.flatten().tolist()
    with pytest.raises(KeyError, match=re.escape("unknown keys: conv.bias; missing keys: none")):
        mixer.load_reference({"conv.weight": conv.weight, "conv.bias": torch.zeros(1)})
    with pytest.raises(KeyError, match="missing keys: taps"):
        mixer.load_reference({})
    with pytest.raises(ValueError, match=re.escape("taps has shape (1, 1, 5), it must be (3,)")):
        ECA(17, kernel_size=3).load_reference({"conv.weight": conv.weight})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_stay_close_and_finite(dtype: torch.dtype) -> None:
    mixer = ECA(23, kernel_size=5)
    x = (30 * torch.randn(2, 23, 31, 37)).to(dtype)
    with torch.no_grad():
        expected, actual = mixer(x.float()), mixer.to(dtype)(x)
    assert actual.dtype == dtype
    assert float((actual.float() - expected).norm() / expected.norm()) < 0.02


def test_channels_last_stays_channels_last() -> None:
    mixer = ECA(12)
    x = torch.randn(2, 12, 5, 7)
    y = mixer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, mixer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 16, "kernel_size": 4}, "odd, got 4"),
        ({"channels": 3, "kernel_size": 7}, "= 5, got 7"),
        ({"channels": 0}, "channels must be positive, got 0"),
        ({"channels": 4, "gamma": 0.1}, "= 7, got 31"),
        ({"channels": 4, "gamma": 0.0}, "gamma must differ from 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regard.create("eca", **options)


def test_ill_input_is_named() -> None:
    mixer = ECA(8)
    with pytest.raises(ValueError, match="1 or 2 or 3 spatial dimensions"):
        mixer(torch.randn(2, 8))
    with pytest.raises(ValueError, match="9 channels and the mixer has 8"):
        mixer.gate(torch.randn(2, 9, 3, 3))
    with pytest.raises(ValueError, match="takes no context"):
        mixer(torch.randn(2, 8, 3), context=torch.randn(2, 8, 3))


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ChannelGate(4)  # type: ignore[abstract]
