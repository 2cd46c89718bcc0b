"""CBAM's spatial attention against its equation written out, timm's module, and the authors' layout."""

from __future__ import annotations

import re
from itertools import product

import pytest
import torch

import regard
from regard.mixers.spatial.cbam_spatial import CBAMSpatial, CBAMSpatial3d

FORMS = [pytest.param(CBAMSpatial, (5, 7), id="2-D"), pytest.param(CBAMSpatial3d, (3, 5, 4), id="3-D")]


def scores_by_hand(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Tap by tap, with zeros beyond the map."""
    space, reach = x.shape[2:], weight.shape[-1] // 2
    summary = torch.stack((x.mean(dim=1), x.max(dim=1).values), dim=1)
    found = torch.zeros(x.shape[0], 1, *space, dtype=x.dtype)
    for place in product(*map(range, space)):
        for tap in product(range(2 * reach + 1), repeat=len(space)):
            seen = tuple(p + t - reach for p, t in zip(place, tap, strict=True))
            if all(0 <= s < side for s, side in zip(seen, space, strict=True)):
                for number in range(2):
                    found[(slice(None), 0, *place)] += weight[(0, number, *tap)] * summary[(slice(None), number, *seen)]
    return found


@pytest.mark.parametrize(("cls", "space"), FORMS)
def test_is_the_formula(cls: type, space: tuple[int, ...]) -> None:
    mixer = cls(6, kernel_size=3, norm=False).double()
    x = torch.randn(2, 6, *space, dtype=torch.float64)
    gate = torch.sigmoid(scores_by_hand(x, mixer.conv.weight.detach()))
    torch.testing.assert_close(mixer.gate(x), gate)
    torch.testing.assert_close(mixer(x), x * gate)
    assert cls.macs(batch=2, space=space, channels=6, kernel_size=3) == 2 * x[0, 0].numel() * 2 * 3 ** len(space)


@pytest.mark.parametrize(("cls", "space"), FORMS)
def test_the_norm_is_a_batch_norm_of_the_scores(cls: type, space: tuple[int, ...]) -> None:
    mixer = cls(6, kernel_size=3)
    x = torch.randn(4, 6, *space)
    scores = scores_by_hand(x, mixer.conv.weight.detach())
    normed = (scores - scores.mean()) / (scores.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(mixer(x), x * torch.sigmoid(normed), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixer.norm.running_mean, 0.01 * scores.mean()[None], rtol=1e-4, atol=1e-5)


def test_equals_timms_module() -> None:
    timm = pytest.importorskip("timm.layers.cbam")
    theirs = timm.SpatialAttn(7).eval()
    with torch.no_grad():
        theirs.conv.bn.weight.fill_(1.3)
        theirs.conv.bn.running_mean.fill_(0.2)
    ours = CBAMSpatial(11).eval()
    ours.load_reference(theirs.state_dict())
    x = torch.randn(2, 11, 9, 13)
    torch.testing.assert_close(ours(x), theirs(x))


def test_loads_the_authors_layout_whose_maximum_comes_first() -> None:
    layout = {
        "spatial.conv.weight": torch.randn(1, 2, 7, 7),
        **{f"spatial.bn.{name}": torch.rand(1) for name in ("weight", "bias", "running_mean", "running_var")},
        "spatial.bn.num_batches_tracked": torch.tensor(3),
    }
    mixer = CBAMSpatial(5)
    mixer.load_reference(layout)
    assert torch.equal(mixer.conv.weight[:, 0], layout["spatial.conv.weight"][:, 1])
    assert torch.equal(mixer.norm.running_var, layout["spatial.bn.running_var"])
    with pytest.raises(KeyError, match=r"missing keys: norm\.bias"):
        mixer.load_reference({name: tensor for name, tensor in layout.items() if name != "spatial.bn.bias"})
    with pytest.raises(ValueError, match=re.escape("conv.weight has shape (1, 2, 5, 5), it must be (1, 2, 7, 7)")):
        mixer.load_reference({**layout, "spatial.conv.weight": torch.zeros(1, 2, 5, 5)})


@pytest.mark.parametrize("name", ["cbam_spatial", "cbam_spatial_3d"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4, "kernel_size": 6}, "kernel_size must be odd and positive, got 6"),
        ({"channels": 4, "kernel_size": -1}, "kernel_size must be odd and positive, got -1"),
        ({"channels": 0}, "channels must be positive, got 0"),
    ],
)
def test_ill_options_are_named(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regard.create(name, **options)


def test_ill_input_is_named() -> None:
    with pytest.raises(ValueError, match="2 spatial dimensions"):
        CBAMSpatial(4).gate(torch.randn(1, 4, 3, 3, 3))
    with pytest.raises(ValueError, match="5 channels and the mixer has 4"):
        CBAMSpatial3d(4)(torch.randn(1, 5, 3, 3, 3))
