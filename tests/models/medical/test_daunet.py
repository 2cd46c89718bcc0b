"""DAUNet: its bottleneck and decoder restated, what each concept adds, and the queries that a stored case lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import backbones
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from regard.layers.any_batch_norm import AnyBatchNorm
from regard.meta_device import sizes_only
from regard.mixers.spatial import position_attention
from regard.models.medical.daunet import DAUNet, DAUNetConfig

SMALL = DAUNetConfig(filters=(3, 5, 9), multi_scale_input=True, deep_supervision=True, guided=True)
CASE = Path(__file__).parents[2] / "parity" / "cases" / "meningioma" / "daunet_guided.safetensors"


def normed(norm: AnyBatchNorm, x: Tensor) -> Tensor:
    shape = (1, -1, 1, 1, 1)
    scaled = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return scaled * norm.weight.view(shape) + norm.bias.view(shape)


def branch_by_layers(branch: torch.nn.Module, attended: Tensor) -> Tensor:
    y = F.conv3d(attended, branch.first.conv.weight, branch.first.conv.bias, padding=1)
    return F.conv3d(normed(branch.first.norm, y).clamp(min=0), branch.last.weight, branch.last.bias, padding=1)


def bottleneck_by_layers(model: DAUNet, y: Tensor) -> Tensor:
    """Both attentions written out."""
    both = model.bottleneck
    tokens = y.flatten(2).transpose(1, 2)
    p = both.position.attention
    scores = (tokens @ p.q_proj.weight.T) @ (tokens @ p.k_proj.weight.T).transpose(1, 2)
    by_position = p.gamma * scores.softmax(dim=-1) @ (tokens @ p.v_proj.weight.T) + tokens
    gram = (tokens.transpose(1, 2) @ tokens).softmax(dim=-1)
    by_channel = both.channel.attention.gamma * (tokens @ gram) + tokens
    branches = [
        branch_by_layers(branch, attended.transpose(1, 2).view_as(y))
        for branch, attended in ((both.position, by_position), (both.channel, by_channel))
    ]
    return normed(both.sum.norm, F.conv3d(branches[0] + branches[1], both.sum.conv.weight, both.sum.conv.bias))


def grown(layer: torch.nn.ConvTranspose3d, x: Tensor, stride: int) -> Tensor:
    """Zeros between the positions, then a convolution with the mirrored kernel; what is behind the map is cut off."""
    sides = [side * stride for side in x.shape[2:]]
    spread = x.new_zeros(*x.shape[:2], *sides)
    spread[..., ::stride, ::stride, ::stride] = x
    kernel = layer.weight.transpose(0, 1).flip(2, 3, 4)
    return F.conv3d(F.pad(spread, (2, 0) * 3), kernel, layer.bias)


@pytest.mark.parametrize("guided", [True, False])
def test_the_decoder_joins_guide_skip_and_map(guided: bool) -> None:
    model = backbones.randomised(DAUNet(replace(SMALL, guided=guided))).double().eval()
    x = torch.randn(1, 1, 12, 16, 12, dtype=torch.float64)
    maps = model.encoder(x)
    deepest = bottom = bottleneck_by_layers(model, maps[-1])
    levels = zip(model.joins, model.blocks, model.heads, maps[1::-1], model.outputs(x)[::-1], strict=True)
    for number, (join, block, head, skip, output) in enumerate(levels):
        parts = [skip, grown(join.grow, deepest, 2)]
        if guided:
            parts.insert(0, grown(join.guide, bottom, 2 ** (number + 1)))
        deepest = block(normed(join.norm, torch.cat(parts, dim=1)).clamp(min=0))
        torch.testing.assert_close(F.conv3d(deepest, head.weight, head.bias), output)


def count(config: DAUNetConfig) -> int:
    with sizes_only():
        return sum(parameter.numel() for parameter in DAUNet(config).parameters())


def test_a_concept_adds_its_own_parameters_alone() -> None:
    full, branch = count(SMALL), 2 * (27 * 9 * 9 + 9) + 2 * 9
    assert full - count(replace(SMALL, position_attention=False)) == branch + 1 + 2 * 9 + 9 * 9
    assert full - count(replace(SMALL, channel_attention=False)) == branch + 1
    neither = count(replace(SMALL, position_attention=False, channel_attention=False))
    assert full - neither == 2 * branch + 2 + 2 * 9 + 9 * 9 + 9 * 9 + 9 + 2 * 9
    # a grown guide, its norm, and as many more channels into the block
    guides = sum(27 * 9 * c + c + 2 * c + 27 * c * c for c in (5, 3))
    assert full - count(replace(SMALL, guided=False)) == guides


def test_without_attention_the_bottleneck_is_the_encoders() -> None:
    model = DAUNet(replace(SMALL, position_attention=False, channel_attention=False, guided=False))
    assert model.bottleneck is None
    assert not any("attention" in name for name, _ in model.named_parameters())


def test_the_bottleneck_drops_channels_in_training() -> None:
    model = DAUNet(replace(SMALL, attention_dropout=0.5))
    y = torch.randn(1, 9, 3, 3, 4)
    assert not torch.equal(model.train().bottleneck(y), model.bottleneck(y))
    assert torch.equal(model.eval().bottleneck(y), model.bottleneck(y))
    assert DAUNetConfig().attention_dropout == 0.5


def test_ill_configs_are_named() -> None:
    with pytest.raises(ValueError, match=r"attention_dropout must be in \[0, 1\), got -0.1"):
        replace(SMALL, attention_dropout=-0.1)
    with pytest.raises(ValueError, match="got channels=7 and reduction=8"):
        DAUNet(replace(SMALL, filters=(3, 5, 7)))
    assert DAUNet(replace(SMALL, filters=(3, 5, 7), position_attention=False)).bottleneck.position is None


def distance_after_fitting(seed: int) -> float:
    """How near the stored outputs come with the best queries and keys that are found from a random start."""
    case = load_file(CASE)
    config = DAUNetConfig(filters=(4, 6, 8), multi_scale_input=True, deep_supervision=True, guided=True)
    model, generator = DAUNet(config), torch.Generator().manual_seed(seed)
    state = {name.removeprefix("state."): tensor for name, tensor in case.items() if name.startswith("state.")}
    state["pam.d.kernel"] = state.pop("pam.pam.kernel")
    state |= {f"pam.{part}.kernel": torch.randn(1, 1, 1, 8, 1, generator=generator) / 2 for part in "bc"}
    model.load_reference(state)
    model = model.double().eval().requires_grad_(False)
    attention = model.bottleneck.position.attention
    fitted = [attention.q_proj.weight.requires_grad_(), attention.k_proj.weight.requires_grad_()]
    encoded = model.encoder(case["in.volume"].double().movedim(-1, 1))
    stored = [case[f"out.prob{level}"].double().movedim(-1, 1) for level in (0, 1)]

    def differences() -> list[Tensor]:
        found = model.decoded(encoded)
        return [
            head(part).softmax(dim=1) - wanted
            for head, part, wanted in zip(model.heads, found, stored[::-1], strict=True)
        ]

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = 1e3 * sum((part.square().sum() for part in differences()), torch.zeros(()))
        loss.backward()
        return loss

    optimiser = torch.optim.LBFGS(
        fitted, max_iter=80, line_search_fn="strong_wolfe", tolerance_grad=1e-14, tolerance_change=1e-16
    )
    optimiser.step(closure)
    return max(float(part.detach().abs().max()) for part in differences())


@pytest.mark.slow
def test_there_are_queries_and_keys_with_which_a_stored_case_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored case holds the values' map alone; over any other axis, no queries and keys explain its outputs."""
    assert distance_after_fitting(0) < 2e-6

    def over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(dim=1) @ v

    def transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(dim=2).mT @ v

    others: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (over_queries, transposed)
    for other in others:
        monkeypatch.setattr(position_attention, "position_attention", other)
        assert distance_after_fitting(0) > 1e-5
