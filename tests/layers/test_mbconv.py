"""MBConv as a chain of plain parts: widths, biases, strides, the gate, and stochastic depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.layers.mbconv import MBConv
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation


def scattered(block: MBConv) -> MBConv:
    with torch.no_grad():
        for name, tensor in block.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            elif tensor.is_floating_point():
                tensor.add_(0.3 * torch.randn_like(tensor))
    return block.double()


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def as_a_chain(block: MBConv, x: torch.Tensor) -> torch.Tensor:
    """Part by part, without folding; a strided convolution is every other position of an unstrided one."""
    inner = tanh_gelu(block.expand_norm(block.expand_conv(block.pre_norm(x))))
    dense = nn.functional.conv2d(inner, block.depthwise_conv.weight, padding=1, groups=inner.shape[1])
    if block.depthwise_conv.stride[0] == 2:
        # the first window of an even axis begins at its first position, that of an odd one before it
        dense = dense[:, :, 1 - x.shape[2] % 2 :: 2, 1 - x.shape[3] % 2 :: 2]
    inner = tanh_gelu(block.depthwise_norm(dense))
    means = inner.mean(dim=(2, 3))
    hidden = nn.functional.silu(means @ block.gate.down_proj.weight.T + block.gate.down_proj.bias)
    gate = torch.sigmoid(hidden @ block.gate.up_proj.weight.T + block.gate.up_proj.bias)
    y = block.shrink_conv(inner * gate[:, :, None, None])
    shortcut = x
    if block.depthwise_conv.stride[0] == 2:
        rows = [x[:, :, at : at + 2].mean(dim=2) for at in range(0, x.shape[2], 2)]
        x = torch.stack(rows, dim=2)
        columns = [x[..., at : at + 2].mean(dim=3) for at in range(0, x.shape[3], 2)]
        shortcut = torch.stack(columns, dim=3)
    return y + (shortcut if block.shortcut_conv is None else block.shortcut_conv(shortcut))


@pytest.mark.parametrize("space", [(6, 4), (5, 7), (1, 1), (2, 3)])
@pytest.mark.parametrize(("widths", "stride"), [((3, 5), 2), ((5, 5), 1), ((5, 5), 2), ((3, 5), 1)])
@pytest.mark.parametrize("training", [True, False])
def test_is_a_chain_of_parts(space: tuple[int, int], widths: tuple[int, int], stride: int, training: bool) -> None:
    gate = SqueezeExcitation(2 * widths[1], hidden=2, activation="silu", bias=True)
    block = scattered(MBConv(*widths, stride=stride, expand_ratio=2, gate=gate)).train(training)
    x = torch.randn(3, widths[0], *space, dtype=torch.float64)
    torch.testing.assert_close(block(x), as_a_chain(block, x))


def test_gradients_reach_every_parameter() -> None:
    gate = SqueezeExcitation(10, hidden=2, activation="silu", bias=True)
    block = scattered(MBConv(3, 5, stride=2, expand_ratio=2, gate=gate)).eval()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    leaves = (x, *block.parameters())
    ours = torch.autograd.grad((block(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((as_a_chain(block, x) * weights).sum(), leaves))


def test_norms_learn_as_tensorflows_do() -> None:
    block = MBConv(3, 5)
    norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert block.expand_conv.bias is None
    assert block.depthwise_conv.bias is None
    assert block.shrink_conv.bias is not None
    assert block.shortcut_conv is not None


def test_a_dropped_branch_leaves_the_shortcut() -> None:
    torch.manual_seed(0)
    block = MBConv(4, 4, drop_path=0.99).train()
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0, "out_channels": 3}, "must be positive, got 0, 3 and 4"),
        ({"in_channels": 2, "out_channels": 3, "expand_ratio": 0}, "must be positive, got 2, 3 and 0"),
        ({"in_channels": 2, "out_channels": 3, "stride": 0}, "stride must be positive"),
        ({"in_channels": 2, "out_channels": 3, "drop_path": 1.0}, "drop_path must be in"),
    ],
)
def test_ill_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MBConv(**options)
