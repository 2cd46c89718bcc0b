"""The heads against their equations written out, their layout and what they refuse."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from regard.layers.scale_heads import ScaleHead, ScaleHeads, resized


def by_hand(head: ScaleHead, global_map: torch.Tensor | None, features: torch.Tensor) -> torch.Tensor:
    """The attention map in evaluation."""
    seen = [features]
    if global_map is not None:
        how = {"mode": "area"} if head.scaling == "means" else {"mode": "bilinear", "align_corners": False}
        seen.insert(0, F.interpolate(global_map, tuple(features.shape[2:]), **how))
    hidden = F.conv2d(torch.cat(seen, dim=1), head.hidden.conv.weight, padding=1)
    norm = head.hidden.norm
    hidden = F.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return torch.sigmoid(F.conv2d(hidden.relu(), head.last.weight, head.last.bias))


def scattered(head: ScaleHead) -> ScaleHead:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        head.hidden.norm.running_var.uniform_(0.5, 1.5)
        head.hidden.norm.running_mean.normal_()
    return head


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("global_channels", "scaling"), [(1, "bilinear"), (2, "means"), (0, "bilinear")])
def test_is_the_formula(per_channel: bool, residual: bool, global_channels: int, scaling: str) -> None:
    head = ScaleHead(
        7,
        global_channels=global_channels,
        head_width=3,
        per_channel=per_channel,
        residual=residual,
        scaling=scaling,
    )
    head = scattered(head).double().eval()
    features = torch.randn(2, 7, 5, 3, dtype=torch.float64, requires_grad=True)
    global_map = torch.randn(2, global_channels, 11, 13, dtype=torch.float64) if global_channels else None
    attention, modulated = head(global_map, features)
    expected = by_hand(head, global_map, features)
    torch.testing.assert_close(attention, expected)
    assert attention.shape == (2, 7 if per_channel else 1, 5, 3)
    result = features * (1 + expected) if residual else features * expected
    torch.testing.assert_close(modulated, result)
    torch.testing.assert_close(head.modulate(global_map, features), result)
    weights = torch.randn_like(result)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), features)[0] for y in (modulated, result))
    torch.testing.assert_close(ours, theirs)


def test_starts_at_one_half() -> None:
    attention, modulated = ScaleHead(13)(torch.randn(3, 1, 22, 14), features := torch.randn(3, 13, 11, 7))
    assert float((attention.detach() - 0.5).abs().max()) < 0.1
    torch.testing.assert_close(modulated, 0.5 * features, rtol=0.3, atol=1e-6)


def test_all_scales_share_the_map_and_learn() -> None:
    heads = ScaleHeads((4, 6, 9), head_width=3)
    assert sum(parameter.numel() for parameter in heads.parameters()) == sum(27 * (c + 1) + 6 + 4 for c in (4, 6, 9))
    global_map = torch.randn(2, 1, 12, 10, requires_grad=True)
    features = [torch.randn(2, 4, 12, 10), torch.randn(2, 6, 6, 5), torch.randn(2, 9, 3, 3)]
    found = heads(global_map, features)
    sum((each.modulated * torch.randn_like(each.modulated)).sum() for each in found).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in heads.parameters())
    assert global_map.grad is not None
    with pytest.raises(ValueError, match="2 feature maps and 3 heads"):
        heads(global_map, features[:2])


def test_resizing_keeps_a_map_that_fits() -> None:
    x = torch.randn(1, 1, 6, 4)
    assert resized(x, (6, 4), "bilinear") is x
    torch.testing.assert_close(resized(x, (3, 2), "means"), F.avg_pool2d(x, 2))
    assert not torch.allclose(resized(x, (2, 2), "bilinear"), resized(x, (2, 2), "means"))


def test_loads_a_numbered_layout_strictly() -> None:
    heads = ScaleHeads((4, 6), head_width=3)
    layout = {}
    for name, tensor in heads.state_dict().items():
        for own, number in (("hidden.conv", 0), ("hidden.norm", 1), ("last", 3)):
            name = name.replace(own, str(number))
        layout[f"heads.{name}"] = torch.rand_like(tensor.float()).to(tensor.dtype)
    heads.load_reference(layout)
    assert torch.equal(heads[1].last.weight, layout["heads.1.3.weight"])
    with pytest.raises(KeyError, match=r"missing keys: 1\.last\.bias"):
        heads.load_reference({name: tensor for name, tensor in layout.items() if name != "heads.1.3.bias"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels=0"),
        ({"channels": 4, "head_width": 0}, "head_width=0"),
        ({"channels": 4, "global_channels": -1}, "global_channels must not be negative, got -1"),
        ({"channels": 4, "scaling": "nearest"}, "scaling must be bilinear or means, got 'nearest'"),
    ],
)
def test_ill_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaleHead(**options)


def test_ill_inputs_are_named() -> None:
    head = ScaleHead(4)
    with pytest.raises(ValueError, match=re.escape("features must have shape (batch, 4, y, x), got (1, 5, 3, 3)")):
        head(torch.zeros(1, 1, 3, 3), torch.zeros(1, 5, 3, 3))
    for global_map, found in ((torch.zeros(1, 2, 3, 3), 2), (None, 0)):
        with pytest.raises(ValueError, match=f"the global map has {found} channels and the head takes 1"):
            head(global_map, torch.zeros(1, 4, 3, 3))
