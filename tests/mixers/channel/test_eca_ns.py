"""ECA-NS against a grouped convolution over windows, and against ECA where its taps are equal."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

from regard.mixers.channel.eca import ECA
from regard.mixers.channel.eca_ns import ECANS


@pytest.mark.parametrize(("channels", "kernel_size"), [(14, 3), (17, 5), (7, 13), (5, 1), (19, None)])
def test_is_a_grouped_convolution_of_windows(channels: int, kernel_size: int | None) -> None:
    mixer = ECANS(channels, kernel_size=kernel_size).double()
    size = mixer.kernel_size
    x = torch.randn(3, channels, 5, 7, dtype=torch.float64)
    pooled = F.pad(x.mean(dim=(2, 3)), (size // 2, size // 2))
    windows = torch.stack([pooled[:, channel : channel + size] for channel in range(channels)], dim=1)
    gate = torch.sigmoid(F.conv1d(windows, mixer.taps[:, None], groups=channels))
    torch.testing.assert_close(mixer(x), x * gate[..., None])


def test_equal_taps_make_it_eca() -> None:
    shared, unshared = ECA(13, kernel_size=5), ECANS(13, kernel_size=5)
    with torch.no_grad():
        unshared.taps.copy_(shared.taps.expand(13, 5))
    x = torch.randn(2, 13, 3, 5)
    torch.testing.assert_close(unshared(x), shared(x))


def test_counts() -> None:
    mixer = ECANS(256)
    assert mixer.taps.shape == (256, 5)
    assert ECANS.macs(batch=3, space=(4, 4), channels=256) == 3 * 256 * 5
    assert ECANS.macs(batch=1, space=(4, 4), channels=256, kernel_size=7) == 256 * 7


def test_loads_the_authors_layout_strictly() -> None:
    mixer = ECANS(5, kernel_size=3)
    weight = torch.randn(5, 1, 3)
    mixer.load_reference({"conv.weight": weight})
    assert torch.equal(mixer.taps, weight[:, 0])
    with pytest.raises(ValueError, match=re.escape("taps has shape (1, 1, 3), it must be (5, 3)")):
        mixer.load_reference({"conv.weight": torch.randn(1, 1, 3)})
    with pytest.raises(KeyError, match="unknown keys: weight; missing keys: taps"):
        mixer.load_reference({"weight": weight})


@pytest.mark.parametrize(("kernel_size", "message"), [(2, "odd, got 2"), (11, "= 9, got 11")])
def test_ill_sizes_are_named(kernel_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ECANS(5, kernel_size=kernel_size)
    with pytest.raises(ValueError, match="6 channels and the mixer has 5"):
        ECANS(5)(torch.randn(1, 6, 3))
