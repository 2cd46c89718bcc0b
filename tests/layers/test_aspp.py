"""ASPP against torchvision's, in evaluation and in training, and what it does where a map is smaller than a rate."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from regard.layers.aspp import ASPP, aspp_names
from regard.layers.reference_names import rename


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("rates", [(1, 2, 3), (6, 12, 18), (5,)], ids=str)
def test_equals_torchvisions(rates: tuple[int, ...], train: bool) -> None:
    deeplab = pytest.importorskip("torchvision.models.segmentation.deeplabv3")
    theirs = deeplab.ASPP(7, list(rates), 5).train(train)
    ours = ASPP(7, rates, out_channels=5).train(train)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + (0.5 if name.endswith("var") else -0.3))
    ours.load_reference(theirs.state_dict())
    x = torch.randn(3, 7, 11, 13)
    outputs = []
    for layer in (theirs, ours):
        torch.manual_seed(1)
        outputs.append(layer(x))
    torch.testing.assert_close(outputs[1], outputs[0])
    buffers = dict(ours.named_buffers())
    for name, tensor in theirs.named_buffers():
        torch.testing.assert_close(buffers[rename(name, aspp_names(len(rates)))], tensor)


def test_has_torchvisions_parameters() -> None:
    deeplab = pytest.importorskip("torchvision.models.segmentation.deeplabv3")
    counts = {sum(p.numel() for p in layer.parameters()) for layer in (deeplab.ASPP(320, [6, 12, 18]), full())}
    assert len(counts) == 1


def full() -> ASPP:
    return ASPP(320, (6, 12, 18))


def test_a_rate_beyond_the_map_is_a_point() -> None:
    layer = ASPP(3, (7,), out_channels=4).eval()
    x = torch.randn(2, 3, 5, 6)
    middle = layer.atrous[0].conv.weight[:, :, 1:2, 1:2]
    torch.testing.assert_close(layer.atrous[0].conv(x), F.conv2d(x, middle))


def test_every_parameter_gets_a_gradient() -> None:
    layer = ASPP(3, (1, 2), out_channels=4, dropout=0.0)
    (layer(torch.randn(3, 3, 5, 7)) * torch.randn(3, 4, 5, 7)).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_dropout_is_off_in_evaluation() -> None:
    layer = ASPP(3, (1,), out_channels=64)
    x = torch.randn(2, 3, 7, 5)
    zeros = [float((layer.train(mode)(x) == 0).float().mean()) for mode in (True, False)]
    assert zeros[0] > zeros[1] + 0.1
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_loads_strictly() -> None:
    layer = ASPP(3, (1,), out_channels=4)
    with pytest.raises(KeyError, match=r"unknown keys: convs\.3\.0\.weight"):
        layer.load_reference({"convs.3.0.weight": torch.zeros(1)})


def test_one_row_cannot_be_trained_on() -> None:
    layer = ASPP(3, (1,), out_channels=4)
    with pytest.raises(ValueError, match="at least 2 rows in a batch, got 1"):
        layer(torch.randn(1, 3, 5, 5))
    assert layer.eval()(torch.randn(1, 3, 5, 5)).shape == (1, 4, 5, 5)


@pytest.mark.parametrize(
    ("rates", "options", "message"),
    [
        ((), {}, "rates must be positive and at least one"),
        ((1, 0), {}, r"rates must be positive and at least one, got \(1, 0\)"),
        ((1,), {"out_channels": 0}, "channels must be positive, got 3 and 0"),
        ((1,), {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
    ids=["none", "zero", "channels", "dropout"],
)
def test_ill_options_are_named(rates: tuple[int, ...], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ASPP(3, rates, **options)
