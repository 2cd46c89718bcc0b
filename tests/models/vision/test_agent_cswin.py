"""Agent-CSwin: counted sizes, which blocks see what, the authors' layout, any size, forms of the same network."""

from __future__ import annotations

from dataclasses import replace

import backbones
import pytest
import torch

from regard.layers.agent_stripes import AgentStripeAttention
from regard.layers.cswin_stripes import StripeAttention
from regard.metadata import Variant
from regard.models.vision.agent_cswin import AgentCSwin, AgentCSwinConfig

SMALL = AgentCSwinConfig(
    image_size=32,
    in_channels=2,
    num_classes=5,
    dims=(8, 12, 24),
    num_heads=(2, 2, 4),
    depths=(2, 2, 1),
    agent_depths=(1, 1, 0),
    num_agents=(9, 4, 1),
    agent_stripe_widths=(8, 2, 2),
    stripe_widths=(1, 2, 2),
    mlp_ratio=1.5,
)
SIZE = (27, 41)


@pytest.mark.parametrize(("name", "variant"), AgentCSwin.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    backbones.check_parameters(AgentCSwin, variant)


def test_macs_are_those_reported() -> None:
    # all others are counted by a claim
    backbones.check_macs(AgentCSwin, AgentCSwin.VARIANTS["agent_cswin_tiny"])


def test_wide_stripes_are_the_whole_map() -> None:
    found = [
        [(type(branch), branch.stripe, branch.width) for branch in block.mixer.branches]
        for stage in AgentCSwin(SMALL).stages
        for block in stage.blocks
    ]
    assert found == [
        [(AgentStripeAttention, "whole", 8)],
        [(StripeAttention, "columns", 1), (StripeAttention, "rows", 1)],
        [(AgentStripeAttention, "columns", 2), (AgentStripeAttention, "rows", 2)],
        [(StripeAttention, "columns", 2), (StripeAttention, "rows", 2)],
        [(StripeAttention, "whole", 2)],
    ]


def authors_layout(model: AgentCSwin) -> dict[str, torch.Tensor]:
    """Random weights under the authors' names, written by a rule of the test's own."""
    tables = {"key_grid": "an", "query_grid": "na", "key_rows": "ah", "key_columns": "aw"}
    tables |= {"query_rows": "ha", "query_columns": "wa"}
    parts = {"mixer_norm": "norm1", "mlp_norm": "norm2", "mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    parts |= {"mixer.qkv": "qkv", "mixer.o_proj": "proj", "mixer.branches": "attns"}
    parts |= {f"agents.bias.{ours}": f"{theirs}_bias" for ours, theirs in tables.items()}
    parts |= {"agents.local": "get_v", "local": "get_v"}
    made = {}
    for name, tensor in model.state_dict().items():
        theirs = name.replace("head_norm", "norm")
        if name.startswith("stages."):
            _, stage, kind, *rest = name.split(".")
            inner = ".".join(rest)
            if kind == "blocks":
                theirs = f"stage{int(stage) + 1}.{inner}"
                for ours, part in parts.items():
                    theirs = theirs.replace(f".{ours}", f".{part}")
            elif stage == "0":
                theirs = "stage1_conv_embed." + inner.replace("conv", "0").replace("norm", "2")
            else:
                theirs = f"merge{stage}.{inner}"
        has_first_axis = theirs.endswith("_bias") and theirs[-7:-5] not in ("an", "na")
        made[theirs] = torch.rand(1, *tensor.shape) if has_first_axis else torch.rand_like(tensor)
    return made


def test_loads_the_authors_layout_strictly() -> None:
    model = AgentCSwin(SMALL)
    layout = authors_layout(model)
    assert "stage2.0.attns.1.wa_bias" in layout
    assert "stage1_conv_embed.2.bias" in layout
    model.load_reference(layout)
    blocks = model.stages[1].blocks
    assert torch.equal(blocks[0].mixer.branches[1].agents.local.weight, layout["stage2.0.attns.1.get_v.weight"])
    assert torch.equal(blocks[0].mixer.branches[1].agents.bias.query_columns, layout["stage2.0.attns.1.wa_bias"][0])
    assert torch.equal(blocks[1].mixer.branches[0].local.weight, layout["stage2.1.attns.0.get_v.weight"])
    assert torch.equal(model.stages[2].embedding.norm.bias, layout["merge2.norm.bias"])
    backbones.check_strict(model, layout)


def test_maps_have_the_sizes_that_they_say() -> None:
    backbones.check_maps(AgentCSwin(SMALL), SIZE)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 64), (32, 32)])
def test_takes_any_size(size: tuple[int, int]) -> None:
    model = AgentCSwin(SMALL).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 2, *size)).isfinite().all()


def test_checkpointing_changes_nothing_but_memory() -> None:
    backbones.check_checkpointing(AgentCSwin, replace(SMALL, drop_path=0.3), SIZE)


@pytest.mark.slow
def test_all_forms_agree() -> None:
    few = {"dims": (8, 12), "num_heads": (2, 2), "depths": (2, 1), "agent_depths": (1, 1), "num_agents": (9, 4)}
    config = replace(SMALL, **few, agent_stripe_widths=(2, 2), stripe_widths=(1, 2))
    backbones.check_forms(AgentCSwin(config), SIZE)


def test_ill_images_are_named() -> None:
    backbones.check_rejects(AgentCSwin(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stripe_widths": (1, 2)}, "stripe_widths must have a positive number for each of the 3 stages"),
        ({"agent_depths": (3, 0, 0)}, "agent_depths must have for each of the 3 stages"),
        ({"num_heads": (1, 2, 4)}, "num_heads of a stage with two branches must be even, got 1 in stage 1"),
        ({"dims": (8, 13, 24)}, "multiple of num_heads|must divide"),
        ({"mlp_ratio": -1.0}, "ratios of perceptrons must be positive"),
        ({"num_agents": (9, 5, 1)}, "num_agents must be a positive square"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentCSwin(replace(SMALL, **changes))
