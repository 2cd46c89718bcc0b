"""MEDUSA: counted sizes, the body that runs once, what a head modulates, layouts, and forms of the same network."""

from __future__ import annotations

import copy
from dataclasses import replace

import backbones
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from regard.layers.attention_body import AttentionBody
from regard.meta_device import sizes_only
from regard.models.medical.medusa import Medusa, MedusaConfig

SMALL = MedusaConfig(
    block="basic",
    depths=(1, 2, 1),
    widths=(6, 7, 9),
    stem="small",
    heads_at=(0, 1, 2),
    body_width=3,
    body_levels=2,
    head_width=5,
    in_channels=2,
    num_classes=3,
)
SIZE = (27, 34)
ATTENTIONS = ("none", "se", "cbam", "medusa", "medusa_local")


def parameters(config: MedusaConfig) -> int:
    with sizes_only():
        model = Medusa(config)
    return sum(parameter.numel() for parameter in model.parameters())


def macs(module: nn.Module, *inputs: torch.Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2


# --------------------------------------------------------------------------------------------------- sizes


def test_parameters_are_those_of_the_released_model() -> None:
    variant = Medusa.VARIANTS["medusa_resnet50"]
    backbones.check_parameters(Medusa, variant)
    assert parameters(variant.config) == 23_512_130 + 5_944_373 + 276_868


def test_macs_are_those_of_the_released_model() -> None:
    backbones.check_macs(Medusa, Medusa.VARIANTS["medusa_resnet50"])


def test_variants_are_counted() -> None:
    counted = {
        "medusa_resnet50_separate": 29_739_730,
        "medusa_resnet50_one_scale": 29_604_056,
        "medusa_resnet50_local": 23_788_710,
        "medusa_resnet50_cbam": 26_028_674,
        "medusa_resnet50_se": 26_027_074,
        "medusa_resnet50_plain": 23_512_130,
    }
    assert {name: parameters(Medusa.VARIANTS[name].config) for name in counted} == counted


def test_the_body_runs_once_however_many_heads_there_are() -> None:
    images = torch.zeros(1, 2, *SIZE)
    one, three = (Medusa(replace(SMALL, heads_at=heads)).eval() for heads in ((2,), (0, 1, 2)))
    maps = one.global_maps(images)
    sizes = ((27, 34), (14, 17), (7, 9))
    widths = (6, 7, 9)
    heads = [
        (9 * (channels + 1) * 5 + 5) * height * width for channels, (height, width) in zip(widths, sizes, strict=True)
    ]
    trunk = macs(Medusa(replace(SMALL, attention="none")).eval(), images)
    body = macs(one.body, images)
    assert macs(one, images) == trunk + body + heads[2]
    assert macs(three, images) == trunk + body + sum(heads)
    assert macs(Medusa(replace(SMALL, shared_body=False)).eval(), images) == trunk + 3 * body + sum(heads)
    assert len(maps) == 1


# --------------------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("shared", [True, False])
def test_what_a_head_modulates_is_what_the_next_stage_sees(shared: bool) -> None:
    model = backbones.randomised(Medusa(replace(SMALL, shared_body=shared, heads_at=(0, 2)))).eval()
    images = torch.randn(2, 2, *SIZE)
    maps = [body(images) for body in model.bodies]
    assert len(maps) == (1 if shared else 2)
    trunk = model.trunk
    x = model.trunk.maxpool(torch.relu(trunk.bn1(trunk.conv1(images))))
    first, x = model.heads[0](maps[0], trunk.stages[0](x))
    second, x = model.heads[1](maps[-1], trunk.stages[2](trunk.stages[1](x)))
    torch.testing.assert_close(model(images), trunk.fc(x.mean(dim=(2, 3))))
    found = model.attention_maps(images)
    for ours, theirs in zip((*found.global_maps, *found.scales), (*maps, first, second), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [tuple(each.shape[1:]) for each in model.features(images)] == [(6, 27, 34), (7, 14, 17), (9, 7, 9)]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_parameter_learns(attention: str) -> None:
    model = backbones.randomised(Medusa(replace(SMALL, attention=attention))).train()
    scores = model(torch.randn(3, 2, *SIZE))
    assert scores.shape == (3, 3)
    (scores * torch.randn_like(scores)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # the single inner channel of squeeze-and-excitation on so few channels may be silent
        assert parameter.grad.abs().max() > 0 or (attention == "se" and "mixer" in name), name


def test_local_heads_have_no_body_and_other_networks_no_heads() -> None:
    local = Medusa(replace(SMALL, attention="medusa_local"))
    found = local.attention_maps(torch.randn(1, 2, *SIZE))
    assert (len(found.global_maps), len(found.scales), len(local.bodies)) == (0, 3, 0)
    cbam = Medusa(replace(SMALL, attention="cbam"))
    assert (len(cbam.heads), len(cbam.bodies)) == (0, 0)
    assert cbam.attention_maps(torch.randn(1, 2, *SIZE)).scales == ()
    assert all(isinstance(block.mixer, nn.Sequential) for stage in cbam.trunk.stages for block in stage)
    with pytest.raises(ValueError, match="there are 0 bodies, not one that is shared"):
        _ = local.body


@pytest.mark.parametrize("attention", ["medusa", "cbam"])
def test_checkpointing_changes_nothing_but_memory(attention: str) -> None:
    backbones.check_checkpointing(Medusa, replace(SMALL, attention=attention), SIZE)


@pytest.mark.slow
def test_all_forms_agree() -> None:
    backbones.check_forms(backbones.randomised(Medusa(SMALL)), SIZE)


@pytest.mark.parametrize("attention", ["medusa", "none"])
def test_fused_norms_change_nothing(attention: str) -> None:
    model = backbones.randomised(Medusa(replace(SMALL, attention=attention))).eval()
    fused = model.fused()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    images = torch.randn(2, 2, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=1e-5)


def test_the_body_learns_by_itself() -> None:
    model = Medusa(SMALL)
    before = copy.deepcopy(model.state_dict())
    assert isinstance(model.body, AttentionBody)
    optimizer = torch.optim.SGD(model.body.parameters(), lr=0.1)
    model.body(torch.randn(2, 2, *SIZE)).square().mean().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("bodies.0.") for name in changed)


# --------------------------------------------------------------------------------------------------- layouts


def layout_of(model: Medusa) -> dict[str, torch.Tensor]:
    """Random weights under the names of a trunk of torchvision's and of numbered bodies and heads."""
    made = {}
    for name, tensor in model.state_dict().items():
        for own, number in (("first.conv", 0), ("first.norm", 1), ("second.conv", 3), ("second.norm", 4)):
            name = name.replace(own, str(number))
        name = name.replace("hidden.conv", "0").replace("hidden.norm", "1").replace("last", "3")
        name = name.replace("bodies.0.", "body.").removeprefix("trunk.")
        for stage in range(4):
            name = name.replace(f"stages.{stage}.", f"layer{stage + 1}.")
        made[name] = torch.rand_like(tensor.float()).to(tensor.dtype)
    return made


def test_loads_the_whole_layout_strictly() -> None:
    model = Medusa(SMALL)
    layout = layout_of(model)
    model.load_reference(layout)
    assert torch.equal(model.trunk.stages[1][1].conv2.weight, layout["layer2.1.conv2.weight"])
    assert torch.equal(model.body.down[1].second.norm.bias, layout["body.down.1.4.bias"])
    assert torch.equal(model.heads[2].last.weight, layout["heads.2.3.weight"])
    backbones.check_strict(model, layout)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_loads_torchvisions_trunk_and_keeps_the_rest(block: str) -> None:
    resnet = pytest.importorskip("torchvision.models.resnet")
    kind = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}[block]
    theirs = backbones.randomised(resnet.ResNet(kind, [1, 1, 1, 1])).eval()
    sizes = {"depths": (1, 1, 1, 1), "stem": "imagenet", "heads_at": (0,), "in_channels": 3, "num_classes": 1000}
    ours = Medusa(replace(SMALL, block=block, widths=(64, 128, 256, 512), attention="none", **sizes)).eval()
    before = ours.trunk.fc.weight.clone()
    ours.load_trunk(theirs.state_dict())
    assert torch.equal(ours.trunk.fc.weight, before)
    ours.load_reference(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(KeyError, match="missing keys"):
        ours.load_trunk({"conv1.weight": theirs.conv1.weight})
    with pytest.raises(ValueError, match="this one has cbam"):
        Medusa(replace(ours.config, attention="cbam")).load_trunk(theirs.state_dict())


# --------------------------------------------------------------------------------------------------- ill use


def test_ill_images_are_named() -> None:
    backbones.check_rejects(Medusa(SMALL))
    with pytest.raises(ValueError, match="at least as many pixels per side as the total stride 32, got"):
        Medusa(Medusa.SMALL)(torch.zeros(1, 1, 31, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads_at": (0, 3)}, r"heads_at must name some of the 3 stages 0 to 2 in order, got \(0, 3\)"),
        ({"heads_at": (1, 0)}, "in order"),
        ({"heads_at": (0, 0)}, "in order"),
        ({"heads_at": (-1,)}, "in order"),
        ({"heads_at": ()}, "in order"),
        ({"attention": "self"}, "attention must be one of none, se, cbam, medusa, medusa_local, got 'self'"),
        ({"head_width": 0}, "head_width=0"),
        ({"body_width": 0}, "width must be positive, got 0"),
        ({"widths": (6, 7)}, "3 depths and 2 widths"),
        ({"num_classes": 0}, "must be positive"),
        ({"scaling": "nearest"}, "scaling must be bilinear or means"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Medusa(replace(SMALL, **changes))
