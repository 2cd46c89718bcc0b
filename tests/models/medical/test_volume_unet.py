"""What both networks for volumes share: sizes, combinations of their concepts, shapes, forms, checkpointing, names."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import backbones
import pytest
import torch

from regard.meta_device import sizes_only
from regard.models.medical.agunet import AGUNet, AGUNetConfig
from regard.models.medical.daunet import DAUNet, DAUNetConfig

SMALL = {
    AGUNet: AGUNetConfig(filters=(4, 6, 8), multi_scale_input=True, deep_supervision=True, num_classes=3),
    DAUNet: DAUNetConfig(filters=(3, 5, 9), multi_scale_input=True, deep_supervision=True, num_classes=3, guided=True),
}
CONCEPTS: dict[type, tuple[str, ...]] = {
    AGUNet: ("attention_gates", "multi_scale_input", "deep_supervision", "batch_norm"),
    DAUNet: (
        "position_attention",
        "channel_attention",
        "guided",
        "multi_scale_input",
        "deep_supervision",
        "batch_norm",
    ),
}
NETWORKS = pytest.mark.parametrize("network", [AGUNet, DAUNet])
VARIANTS = [(network, name) for network in SMALL for name in network.VARIANTS]


def parameters(network: Any, config: Any) -> dict[str, int]:
    with sizes_only():
        return {name: value.numel() for name, value in network(config).named_parameters()}


@pytest.mark.parametrize(("network", "name"), VARIANTS, ids=[name for _, name in VARIANTS])
def test_parameters_are_those_reported(network: Any, name: str) -> None:
    variant = network.VARIANTS[name]
    assert sum(parameters(network, variant.config).values()) == variant.reported.params


@NETWORKS
def test_every_combination_builds_and_runs(network: Any) -> None:
    x = torch.randn(1, 1, 12, 12, 16)
    names = CONCEPTS[network]
    for choice in itertools.product((False, True), repeat=len(names)):
        config = replace(SMALL[network], **dict(zip(names, choice, strict=True)))
        with torch.no_grad():
            found = network(config).eval().outputs(x)
        assert len(found) == (2 if config.deep_supervision else 1)
        assert found[0].shape == (1, 3, 12, 12, 16)
        assert found[0].isfinite().all()


@NETWORKS
def test_outputs_are_listed_finest_first_and_forward_gives_the_first(network: Any) -> None:
    model = backbones.randomised(network(SMALL[network])).eval()
    x = torch.randn(2, 1, 12, 16, 20)
    found = model.outputs(x)
    assert [tuple(part.shape) for part in found] == [(2, 3, 12, 16, 20), (2, 3, 6, 8, 10)]
    torch.testing.assert_close(model(x), found[0])


@NETWORKS
def test_every_parameter_learns(network: Any) -> None:
    model = backbones.randomised(network(SMALL[network])).eval()
    sum((part * torch.randn_like(part)).sum() for part in model.outputs(torch.randn(2, 1, 12, 12, 16))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@NETWORKS
def test_checkpointing_changes_nothing_but_memory(network: Any) -> None:
    config = replace(SMALL[network], dropout=0.3)
    plain, thrifty = network(config).train(), network(replace(config, checkpointing=True)).train()
    thrifty.load_state_dict(copy.deepcopy(plain.state_dict()))
    x = torch.randn(2, 1, 12, 12, 16)
    for model in (plain, thrifty):
        torch.manual_seed(5)
        sum(part.square().sum() for part in model.outputs(x)).backward()
    for (name, ours), theirs in zip(thrifty.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")
    for ours, theirs in zip(thrifty.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@NETWORKS
def test_all_forms_agree(network: Any) -> None:
    model = backbones.randomised(network(SMALL[network])).eval()
    x = torch.randn(2, 1, 12, 12, 16)
    with torch.no_grad():
        expected = model(x)
        first = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        torch.testing.assert_close(first(x), expected, rtol=1e-3, atol=1e-4)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-3, atol=1e-4)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-3, atol=1e-4)
        low = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert float((low.float() - expected).norm() / expected.norm()) < 0.05


def test_kernels_have_their_channels_last() -> None:
    kernel = AGUNet(SMALL[AGUNet]).encoder.blocks[1].first.conv.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d)


@NETWORKS
def test_dropout_is_off_in_evaluation(network: Any) -> None:
    model = network(replace(SMALL[network], dropout=0.5)).eval()
    x = torch.randn(1, 1, 12, 12, 12)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def keras_layout(model: Any) -> dict[str, torch.Tensor]:
    """The weights under Keras' names, written by a rule of the test's own: numbers with gaps, kernels reversed."""
    own, made = model.state_dict(), {}
    leaves = {"running_mean": "moving_mean", "running_var": "moving_variance"}
    for kind, modules in model.reference_order().items():
        for number, module in enumerate(modules):
            layer = f"{kind}_{3 * number + 4}"
            for name, tensor in own.items():
                leaf = name.removeprefix(f"{module}.")
                if leaf == name or leaf == "num_batches_tracked":
                    continue
                value = torch.rand_like(tensor)
                if kind == "pam":
                    leaf = {"q_proj.weight": "c.kernel", "k_proj.weight": "b.kernel", "v_proj.weight": "d.kernel"}.get(
                        leaf, leaf
                    )
                elif kind == "batch_normalization":
                    leaf = {"weight": "gamma", "bias": "beta", **leaves}[leaf]
                elif leaf == "weight":
                    leaf = "kernel"
                if leaf.endswith("kernel"):
                    value = value.reshape(*value.shape[:2], *(value.shape[2:] or (1, 1, 1))).permute(2, 3, 4, 1, 0)
                made[f"{layer}.{leaf}"] = value
    return made


@NETWORKS
@pytest.mark.parametrize("bare", [False, True])
def test_loads_the_authors_layout_strictly(network: Any, bare: bool) -> None:
    config = SMALL[network]
    if bare:
        config = replace(config, multi_scale_input=False, deep_supervision=False, batch_norm=False)
    model = network(config)
    layout = keras_layout(model)
    before = copy.deepcopy(model.state_dict())
    model.load_reference(layout)
    unchanged = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
    assert all(name.endswith("num_batches_tracked") for name in unchanged)
    assert torch.equal(
        model.heads[-1].bias,
        layout[
            max(
                (
                    n
                    for n in layout
                    if n.endswith("bias") and "d_" in n and n.startswith("conv3d_") and "transpose" not in n
                ),
                key=lambda n: int(n.split("_")[1].split(".")[0]),
            )
        ],
    )
    backbones.check_strict(model, layout)


@NETWORKS
def test_ill_volumes_are_named(network: Any) -> None:
    model = network(SMALL[network])
    assert (model.stride, model.smallest) == (4, 12)
    for shape in ((1, 12, 12, 12), (1, 2, 12, 12, 12)):
        with pytest.raises(ValueError, match=r"must have shape \(batch, 1, three axes of space\), got"):
            model(torch.zeros(shape))
    for sides in ((12, 12, 14), (8, 12, 12), (12, 0, 12)):
        with pytest.raises(ValueError, match=r"multiple of 4 and at least 12, got"):
            model(torch.zeros(1, 1, *sides))
    with pytest.raises(ValueError, match="multiple of 4"):
        model.outputs(torch.zeros(1, 1, 13, 12, 12))


@NETWORKS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, "at least 2, the background among them, got num_classes=1"),
        ({"in_channels": 0}, "in_channels and num_classes must be positive, got in_channels=0"),
        ({"filters": (8,)}, "at least 2 levels, got"),
        ({"filters": (8, 0)}, "filters must be positive"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1"),
        ({"norm_momentum": 0.0}, r"norm_momentum must be in \(0, 1\], got 0"),
        ({"pooling_ties": -1.0}, "pooling_ties must not be negative, got -1"),
    ],
)
def test_ill_configs_are_named(network: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(replace(SMALL[network], **changes))


@NETWORKS
def test_small_networks_take_small_volumes(network: Any) -> None:
    model = network(network.SMALL).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 24, 24, 24)).shape == (1, 2, 24, 24, 24)
    assert network.task_settings["size"] == "48"
    assert 48 % model.stride == 0
