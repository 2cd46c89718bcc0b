"""AGUNet: its decoder restated layer by layer, and what each concept adds."""

from __future__ import annotations

from dataclasses import replace

import backbones
import torch
from torch import Tensor
from torch.nn import functional as F

from regard.layers.any_batch_norm import AnyBatchNorm
from regard.meta_device import sizes_only
from regard.models.medical.agunet import AGUNet, AGUNetConfig

SMALL = AGUNetConfig(filters=(3, 5, 7), multi_scale_input=True, deep_supervision=True)


def rectified(norm: AnyBatchNorm, x: Tensor) -> Tensor:
    shape = (1, -1, 1, 1, 1)
    scaled = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return (scaled * norm.weight.view(shape) + norm.bias.view(shape)).clamp(min=0)


def test_the_decoder_grows_gates_and_joins() -> None:
    model = backbones.randomised(AGUNet(SMALL)).double().eval()
    x = torch.randn(1, 1, 12, 16, 12, dtype=torch.float64)
    maps = model.encoder(x)
    deepest = maps[-1]
    for join, block, head, skip, output in zip(
        model.joins, model.blocks, model.heads, maps[1::-1], model.outputs(x)[::-1], strict=True
    ):
        grown = F.conv_transpose3d(deepest, join.grow.weight, join.grow.bias, stride=2)[..., :-1, :-1, :-1]
        g = rectified(join.norm, grown)
        deepest = block(torch.cat([g, skip * join.gate.gate(skip, g)], dim=1))
        torch.testing.assert_close(F.conv3d(deepest, head.weight, head.bias), output)


def count(config: AGUNetConfig) -> int:
    with sizes_only():
        return sum(parameter.numel() for parameter in AGUNet(config).parameters())


def test_a_concept_adds_its_own_parameters_alone() -> None:
    full = count(SMALL)
    gates = sum(2 * (c * (c // 2) + 3 * (c // 2)) + 2 * (c // 2) + 1 + 2 for c in (3, 5))
    assert full - count(replace(SMALL, attention_gates=False)) == gates
    # a convolution on the shrunken volume, and five more channels into the block of the middle level
    pyramid = 27 * 5 + 5 + 27 * 5 * 5
    assert full - count(replace(SMALL, multi_scale_input=False)) == pyramid
    assert full - count(replace(SMALL, deep_supervision=False)) == 2 * 5 + 2
    # two per block and one per grown map: of the blocks 3, 5, 7, 5, 3, of the maps 5, 3
    norms = 2 * (2 * (3 + 5 + 7 + 5 + 3) + 5 + 3)
    assert full - count(replace(SMALL, batch_norm=False)) == norms


def test_gates_keep_their_norms_without_the_blocks() -> None:
    names = [name for name, _ in AGUNet(replace(SMALL, batch_norm=False)).named_parameters() if "norm" in name]
    assert names
    assert all(".gate." in name for name in names)
    without = AGUNet(replace(SMALL, batch_norm=False, attention_gates=False))
    assert not any("norm" in name for name, _ in without.named_parameters())


def test_a_closed_gate_shuts_the_skip_connection() -> None:
    model = backbones.randomised(AGUNet(replace(SMALL, deep_supervision=False))).eval()
    join = model.joins[-1]
    x, skip = torch.randn(1, 5, 6, 6, 8), torch.randn(1, 3, 12, 12, 16)
    with torch.no_grad():
        join.gate.score_norm.bias.fill_(-1e4)
        assert not join(x, skip)[:, 3:].any()
        join.gate.score_norm.bias.fill_(1e4)
        assert torch.equal(join(x, skip)[:, 3:], skip)
