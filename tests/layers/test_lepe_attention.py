"""Full attention with LePE against a loop over heads, and the authors' layout."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from regard.layers.lepe_attention import LePEAttention


@pytest.mark.parametrize(("taps", "bias"), [(5, False), (3, True), (0, False)])
def test_is_a_loop_over_heads(taps: int, bias: bool) -> None:
    layer = LePEAttention(6, num_heads=3, lepe_kernel_size=taps, qkv_bias=bias).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = layer.qkv(tokens).split(6, dim=-1)
    heads = []
    for head in range(3):
        own = slice(2 * head, 2 * head + 2)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / 2**0.5
        heads.append(scores.softmax(dim=-1) @ v[..., own])
    mixed = torch.cat(heads, dim=-1).transpose(1, 2).unflatten(2, (5, 7))
    if taps:
        assert layer.lepe is not None
        mixed = mixed + conv2d(x, layer.lepe.weight, layer.lepe.bias, padding=taps // 2, groups=6)
    expected = torch.einsum("bcyx,dc->bdyx", mixed, layer.o_proj.weight) + layer.o_proj.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_takes_a_single_position() -> None:
    layer = LePEAttention(16)
    assert layer.qkv.bias is None
    assert layer(torch.randn(3, 16, 1, 1)).shape == (3, 16, 1, 1)


def test_loads_the_authors_layout_strictly() -> None:
    layer = LePEAttention(8)
    layout = {name.replace("o_proj", "proj"): torch.rand_like(value) for name, value in layer.state_dict().items()}
    layer.load_reference(layout)
    assert torch.equal(layer.o_proj.weight, layout["proj.weight"])
    with pytest.raises(KeyError, match=r"missing keys: lepe\.bias"):
        layer.load_reference({name: value for name, value in layout.items() if name != "lepe.bias"})


def test_ill_options_are_named() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads, got dim=6 and num_heads=4"):
        LePEAttention(6, num_heads=4)
    with pytest.raises(ValueError, match="lepe_kernel_size must be odd, or 0 for none, got 2"):
        LePEAttention(8, lepe_kernel_size=2)
