"""The attention body against its equations written out, its sizes, its layout and what it refuses."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from regard.layers.attention_body import AttentionBody, mask_loss, padded, reduced
from regard.layers.conv_norm import fold_norms


def scattered(body: AttentionBody) -> AttentionBody:
    """Norms away from their start."""
    with torch.no_grad():
        for name, tensor in body.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.2 * torch.randn_like(tensor))
    return body


def numbered(body: AttentionBody) -> dict[str, torch.Tensor]:
    """The weights under the names of a layout whose double convolutions are sequences, by a rule of the test's own."""
    made = {}
    for name, tensor in body.state_dict().items():
        for own, number in (("first.conv", 0), ("first.norm", 1), ("second.conv", 3), ("second.norm", 4)):
            name = name.replace(own, str(number))
        made[name] = tensor
    return made


def by_hand(layout: dict[str, torch.Tensor], image: torch.Tensor, levels: int, downscale: int) -> torch.Tensor:
    """The equations in evaluation, with functions of PyTorch alone."""

    def double(x: torch.Tensor, name: str) -> torch.Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            x = F.conv2d(x, layout[f"{name}.{conv}.weight"], padding=1)
            mean, var = layout[f"{name}.{norm}.running_mean"], layout[f"{name}.{norm}.running_var"]
            x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
            x = x * layout[f"{name}.{norm}.weight"][:, None, None] + layout[f"{name}.{norm}.bias"][:, None, None]
            x = x.clamp(min=0)
        return x

    height, width = (side // downscale for side in image.shape[2:])
    x = F.interpolate(image, (height, width), mode="bilinear", align_corners=False)
    multiple = 2**levels
    rows = [min(row, 2 * height - 2 - row) for row in range(-(-height // multiple) * multiple)]
    columns = [min(column, 2 * width - 2 - column) for column in range(-(-width // multiple) * multiple)]
    kept = [double(x[:, :, rows][:, :, :, columns], "inc")]
    for level in range(levels):
        kept.append(double(F.max_pool2d(kept[-1], 2), f"down.{level}"))
    x = kept.pop()
    for level in range(levels):
        up = F.conv_transpose2d(x, layout[f"up.{level}.weight"], layout[f"up.{level}.bias"], stride=2)
        x = double(torch.cat((kept.pop(), up), dim=1), f"dec.{level}")
    return F.conv2d(x, layout["out.weight"], layout["out.bias"])[:, :, :height, :width]


@pytest.mark.parametrize(
    ("levels", "downscale", "size"), [(3, 2, (37, 26)), (2, 1, (13, 11)), (1, 3, (23, 31)), (0, 2, (5, 3))]
)
def test_is_the_formula(levels: int, downscale: int, size: tuple[int, int]) -> None:
    body = AttentionBody(2, width=3, levels=levels, out_channels=2, downscale=downscale)
    body = scattered(body).double().eval()
    image = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    layout = numbered(body)
    expected = by_hand(layout, image, levels, downscale)
    actual = body(image)
    torch.testing.assert_close(actual, expected)
    assert actual.shape[2:] == tuple(side // downscale for side in size)
    weights = torch.randn_like(actual)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), image)[0] for y in (actual, expected))
    torch.testing.assert_close(ours, theirs)


def test_every_parameter_learns() -> None:
    body = AttentionBody(1, width=3, levels=3)
    y = body(torch.randn(3, 1, 34, 50))
    (y * torch.randn_like(y)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in body.parameters())


@pytest.mark.parametrize(("width", "count"), [(26, 5_125_927), (28, 5_944_373), (30, 6_823_411), (32, 7_763_041)])
def test_parameters_are_counted(width: int, count: int) -> None:
    with torch.device("meta"):
        body = AttentionBody(3, width=width)
    assert sum(parameter.numel() for parameter in body.parameters()) == count


def test_padding_mirrors_without_the_edge_and_halving_takes_means() -> None:
    x = torch.arange(15.0).view(1, 1, 3, 5)
    assert padded(x, 4)[0, 0, :, 4:].tolist() == [[4, 3, 2, 1], [9, 8, 7, 6], [14, 13, 12, 11], [9, 8, 7, 6]]
    assert padded(x, 1) is x
    even = torch.randn(1, 2, 6, 10)
    torch.testing.assert_close(reduced(even, 2), F.avg_pool2d(even, 2))
    assert reduced(even, 1) is even


def test_folded_norms_change_nothing() -> None:
    body = scattered(AttentionBody(1, width=5, levels=2)).eval()
    folded = copy.deepcopy(body)
    fold_norms(folded)
    assert not any("norm" in name for name, _ in folded.named_parameters())
    images = torch.randn(2, 1, 70, 54)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), body(images), rtol=1e-4, atol=1e-5)


def test_loads_a_numbered_layout_strictly() -> None:
    source, body = scattered(AttentionBody(1, width=3, levels=2)), AttentionBody(1, width=3, levels=2)
    layout = numbered(source)
    body.load_reference(layout)
    assert torch.equal(body.dec[1].second.norm.running_var, layout["dec.1.4.running_var"])
    with pytest.raises(KeyError, match=r"missing keys: inc\.first\.conv\.weight"):
        body.load_reference({name: tensor for name, tensor in layout.items() if name != "inc.0.weight"})
    with pytest.raises(KeyError, match=r"unknown keys: inc\.6\.weight"):
        body.load_reference({**layout, "inc.6.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="it must be"):
        body.load_reference({**layout, "out.bias": torch.zeros(2)})


def test_mask_loss_is_cross_entropy_over_areas() -> None:
    global_map = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    masks = torch.rand(3, 1, 8, 10) > 0.5
    shares = masks.double().view(3, 1, 4, 2, 5, 2).mean(dim=(3, 5))
    probabilities = torch.sigmoid(global_map[:, :1])
    expected = -(shares * probabilities.log() + (1 - shares) * (1 - probabilities).log()).mean()
    torch.testing.assert_close(mask_loss(global_map, masks), expected)
    with pytest.raises(ValueError, match=re.escape("masks must have shape (3, 1, y, x), got (2, 1, 8, 10)")):
        mask_loss(global_map, masks[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be positive, got 0"),
        ({"width": 0}, "width must be positive, got 0"),
        ({"out_channels": -1}, "out_channels must be positive, got -1"),
        ({"downscale": 0}, "downscale must be positive, got 0"),
        ({"levels": -1}, "levels must not be negative, got -1"),
    ],
)
def test_ill_options_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionBody(**options)


def test_ill_images_are_named() -> None:
    body = AttentionBody(1, width=2, levels=3)
    with pytest.raises(ValueError, match=re.escape("images must have shape (batch, 1, y, x), got (1, 2, 32, 32)")):
        body(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ValueError, match=r"at least 10 pixels per side for 3 levels behind a reduction by 2, got"):
        body(torch.zeros(1, 1, 9, 32))
    assert body.eval()(torch.zeros(1, 1, 10, 33)).shape == (1, 1, 5, 16)
