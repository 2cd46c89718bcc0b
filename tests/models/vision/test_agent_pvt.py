"""Agent-PVT: counted sizes, the authors' layout, stages, any size, forms of the same network."""

from __future__ import annotations

from dataclasses import replace

import backbones
import pytest
import torch

from regard.layers.agent_reduced_attention import AgentReducedAttention
from regard.layers.reduced_attention import ReducedAttention
from regard.metadata import Variant
from regard.models.vision.agent_pvt import AgentPVT, AgentPVTConfig

SMALL = AgentPVTConfig(
    image_size=32,
    in_channels=2,
    num_classes=5,
    dims=(6, 12, 20),
    num_heads=(1, 2, 4),
    depths=(1, 2, 1),
    agent_depths=(1, 1, 0),
    num_agents=(9, 4, 1),
    agent_reductions=(2, 1, 1),
    reductions=(4, 2, 1),
    mlp_ratios=(2, 1.5, 2),
)
SIZE = (27, 41)


@pytest.mark.parametrize(("name", "variant"), AgentPVT.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    backbones.check_parameters(AgentPVT, variant)


def test_macs_are_those_reported() -> None:
    # all others are counted by a claim
    backbones.check_macs(AgentPVT, AgentPVT.VARIANTS["agent_pvt_tiny"])


def authors_layout(model: AgentPVT) -> dict[str, torch.Tensor]:
    """Random weights under the authors' names, written by a rule of the test's own."""
    tables = {"key_grid": "an", "query_grid": "na", "key_rows": "ah", "key_columns": "aw"}
    tables |= {"query_rows": "ha", "query_columns": "wa"}
    parts = {"mixer_norm": "norm1", "mlp_norm": "norm2", "mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    parts |= {"mixer.q_proj": "attn.q", "mixer.kv_proj": "attn.kv", "mixer.o_proj": "attn.proj"}
    parts |= {"mixer.reduction.conv": "attn.sr", "mixer.reduction.norm": "attn.norm"}
    parts |= {"mixer.agents.local": "attn.dwc"}
    parts |= {f"mixer.agents.bias.{ours}": f"attn.{theirs}_bias" for ours, theirs in tables.items()}
    made = {}
    for name, tensor in model.state_dict().items():
        theirs = name
        if name.startswith("stages."):
            _, stage, kind, *rest = name.split(".")
            number, inner = int(stage) + 1, ".".join(rest)
            if kind == "blocks":
                theirs = f"block{number}.{inner}"
                for ours, part in parts.items():
                    theirs = theirs.replace(f".{ours}", f".{part}")
            elif inner == "positions":
                theirs = f"pos_embed{number}"
            else:
                theirs = f"patch_embed{number}." + inner.replace("patches.", "").replace("conv", "proj")
        has_first_axis = theirs.endswith("_bias") and theirs[-7:-5] not in ("an", "na")
        made[theirs] = torch.rand(1, *tensor.shape) if has_first_axis else torch.rand_like(tensor)
    return made


def test_loads_the_authors_layout_strictly() -> None:
    model = AgentPVT(SMALL)
    layout = authors_layout(model)
    model.load_reference(layout)
    assert torch.equal(model.stages[0].blocks[0].mixer.reduction.conv.weight, layout["block1.0.attn.sr.weight"])
    assert torch.equal(model.stages[1].blocks[1].mixer.reduction.norm.bias, layout["block2.1.attn.norm.bias"])
    assert torch.equal(model.stages[1].blocks[0].mixer.agents.bias.key_rows, layout["block2.0.attn.ah_bias"][0])
    assert torch.equal(model.stages[2].embedding.patches.norm.bias, layout["patch_embed3.norm.bias"])
    assert torch.equal(model.stages[2].embedding.positions, layout["pos_embed3"])
    backbones.check_strict(model, layout)


def test_the_first_blocks_of_a_stage_have_agents() -> None:
    kinds = [type(block.mixer) for stage in AgentPVT(SMALL).stages for block in stage.blocks]
    assert kinds == [AgentReducedAttention, AgentReducedAttention, ReducedAttention, ReducedAttention]


def test_maps_have_the_sizes_that_they_say() -> None:
    model = AgentPVT(replace(SMALL, qkv_bias=False))
    backbones.check_maps(model, SIZE)


def test_nothing_is_normed_before_the_classes() -> None:
    model = AgentPVT(SMALL).eval()
    assert model.head_norm is None
    images = torch.randn(2, 2, *SIZE)
    torch.testing.assert_close(model(images), model.head(model.features(images)[-1].flatten(2).mean(dim=2)))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 64), (32, 32)])
def test_takes_any_size(size: tuple[int, int]) -> None:
    model = AgentPVT(SMALL).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 2, *size)).isfinite().all()


def test_positions_are_interpolated() -> None:
    embedding = AgentPVT(SMALL).stages[0].embedding
    torch.nn.init.constant_(embedding.positions, 3.0)
    x = torch.randn(1, 9, 13, 2)
    torch.testing.assert_close(embedding(x), embedding.patches(x) + 3)


def test_checkpointing_changes_nothing_but_memory() -> None:
    backbones.check_checkpointing(AgentPVT, replace(SMALL, drop_path=0.3), SIZE)


@pytest.mark.slow
def test_all_forms_agree() -> None:
    few = {"dims": (6, 12), "num_heads": (1, 2), "depths": (1, 2), "agent_depths": (1, 1), "num_agents": (9, 4)}
    config = replace(SMALL, **few, agent_reductions=(2, 1), reductions=(4, 2), mlp_ratios=(2, 2))
    backbones.check_forms(AgentPVT(config), SIZE)


def test_ill_images_are_named() -> None:
    backbones.check_rejects(AgentPVT(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (6, 12)}, "num_heads must have a positive number for each of the 2 stages"),
        ({"num_agents": (9, 4)}, "num_agents must have a positive number for each of the 3 stages"),
        ({"agent_depths": (1, 1)}, "agent_depths must have for each of the 3 stages"),
        ({"mlp_ratios": (2, 2)}, "mlp_ratios must have a number for each of the 3 stages"),
        ({"mlp_ratios": (2, 2, 0)}, "ratios of perceptrons must be positive"),
        ({"num_agents": (9, 5, 1)}, "num_agents must be a positive square"),
        ({"num_heads": (5, 2, 4)}, "multiple of num_heads"),
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentPVT(replace(SMALL, **changes))
