"""CSWin's stripes: by a loop over stripes, padding, the cross of both branches, and ill options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from regard.layers.cswin_stripes import CrossShapedAttention, Stripe, StripeAttention, stripe_size


def by_loop(layer: StripeAttention, qkv: Tensor) -> Tensor:
    """Stripe by stripe and head by head, on the map padded with zeros."""
    height, width = qkv.shape[1:3]
    sy, sx = {
        "columns": (height, min(layer.width, width)),
        "rows": (min(layer.width, height), width),
        "whole": (height, width),
    }[layer.stripe]
    padded = pad(qkv, (0, 0, 0, 0, 0, -width % sx, 0, -height % sy))
    y = torch.zeros_like(padded[:, :, :, 0])
    for top in range(0, padded.shape[1], sy):
        for left in range(0, padded.shape[2], sx):
            part = padded[:, top : top + sy, left : left + sx]
            q, k, v = (part[:, :, :, kind].flatten(1, 2) for kind in range(3))
            mixed = []
            for own in torch.arange(q.shape[-1]).tensor_split(layer.num_heads):
                scores = q[..., own] @ k[..., own].transpose(1, 2) / len(own) ** 0.5
                mixed.append(scores.softmax(dim=-1) @ v[..., own])
            maps = part[:, :, :, 2].permute(0, 3, 1, 2)
            local = conv2d(maps, layer.local.weight, layer.local.bias, padding=1, groups=maps.shape[1])
            attended = torch.cat(mixed, dim=-1).unflatten(1, (sy, sx))
            y[:, top : top + sy, left : left + sx] = attended + local.permute(0, 2, 3, 1)
    return y[:, :height, :width]


@pytest.mark.parametrize("stripe", ["columns", "rows", "whole"])
@pytest.mark.parametrize("space", [(4, 6), (5, 7), (1, 1), (3, 1)])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_is_a_loop_over_stripes(stripe: Stripe, space: tuple[int, int], width: int) -> None:
    layer = StripeAttention(6, num_heads=2, stripe=stripe, width=width).double()
    qkv = torch.randn(2, *space, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(qkv), by_loop(layer, qkv))


def test_a_cross_is_seen() -> None:
    branches = [StripeAttention(3, num_heads=1, stripe=stripe, width=1) for stripe in ("columns", "rows")]
    layer = CrossShapedAttention(6, branches).double()
    x = torch.randn(1, 7, 9, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, 3, 4].sum(), x)
    seen = gradient[0].abs().sum(dim=-1) > 0
    expected = torch.zeros(7, 9, dtype=torch.bool)
    expected[3] = True
    expected[:, 4] = True
    assert torch.equal(seen, expected)


def test_branches_share_the_channels_of_one_projection() -> None:
    branches = [StripeAttention(4, num_heads=2, stripe=stripe, width=2) for stripe in ("columns", "rows")]
    layer = CrossShapedAttention(8, branches, qkv_bias=False).double()
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    projected = (x @ layer.qkv.weight.T).unflatten(-1, (3, 8))
    mixed = [by_loop(branches[0], projected[..., :4]), by_loop(branches[1], projected[..., 4:])]
    expected = torch.cat(mixed, dim=-1) @ layer.o_proj.weight.T + layer.o_proj.bias
    torch.testing.assert_close(layer(x), expected)


def test_ill_options_are_named() -> None:
    assert stripe_size("rows", 3, (2, 9)) == (2, 9)
    with pytest.raises(ValueError, match="one of columns, rows, whole with a positive width, got 'cross', 1"):
        stripe_size("cross", 1, (2, 9))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive width, got 'rows', 0"):
        StripeAttention(6, num_heads=2, stripe="rows", width=0)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        StripeAttention(6, num_heads=4, stripe="rows")
    with pytest.raises(ValueError, match="the number of branches must divide channels=7, got 2"):
        CrossShapedAttention(7, [torch.nn.Identity(), torch.nn.Identity()])
    with pytest.raises(ValueError, match="the number of branches must divide channels=7, got 0"):
        CrossShapedAttention(7, [])
