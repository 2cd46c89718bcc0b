"""Agent-DeiT: counted sizes, timm's DeiT where no block has agents, the authors' layout, any size, forms."""

from __future__ import annotations

from dataclasses import replace

import backbones
import pytest
import torch

from regard.metadata import Variant
from regard.models.vision.agent_deit import AgentDeiT, AgentDeiTConfig

SMALL = AgentDeiTConfig(
    image_size=20,
    in_channels=2,
    num_classes=5,
    patch_size=4,
    dim=12,
    num_layers=3,
    num_heads=2,
    agent_layers=2,
    num_agents=4,
    mlp_ratio=1.5,
)
SIZE = (17, 29)


@pytest.mark.parametrize(("name", "variant"), AgentDeiT.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    backbones.check_parameters(AgentDeiT, variant)


def test_macs_are_those_reported() -> None:
    # all others are counted by a claim
    backbones.check_macs(AgentDeiT, AgentDeiT.VARIANTS["agent_deit_tiny"])


def test_is_timms_network_without_agents() -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("deit_tiny_patch16_224", embed_dim=48, depth=3, num_heads=4, num_classes=11)
    config = AgentDeiTConfig(dim=48, num_layers=3, num_heads=4, agent_layers=0, num_classes=11)
    backbones.check_equals_timm(AgentDeiT(config), theirs, [(224, 224)])


def test_positions_are_resized_as_in_timm() -> None:
    timm = pytest.importorskip("timm")
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 11}
    theirs = timm.create_model("deit_tiny_patch16_224", dynamic_img_size=True, **sizes)
    config = AgentDeiTConfig(dim=48, num_layers=2, num_heads=4, agent_layers=0, num_classes=11)
    # timm smooths where positions become fewer: larger maps alone are the same
    backbones.check_equals_timm(AgentDeiT(config), theirs, [(240, 304)])


def authors_layout(model: AgentDeiT) -> dict[str, torch.Tensor]:
    """Random weights under the authors' names, written by a rule of the test's own."""
    tables = {"key_grid": "an", "query_grid": "na", "key_rows": "ah", "key_columns": "aw"}
    tables |= {"query_rows": "ha", "query_columns": "wa", "key_class": "ac", "query_class": "ca"}
    parts = {"mixer_norm": "norm1", "mlp_norm": "norm2", "mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    parts |= {"mixer.qkv": "attn.qkv", "mixer.o_proj": "attn.proj", "mixer.local": "attn.dwc"}
    parts |= {f"mixer.bias.{ours}": f"attn.{theirs}_bias" for ours, theirs in tables.items()}
    whole = {"class_token": "cls_token", "positions": "pos_embed"}
    made = {}
    for name, tensor in model.state_dict().items():
        if ".mixer." in name and name.split(".")[3] in ("k_proj", "v_proj"):
            continue
        theirs = whole.get(name, name.replace("patches", "patch_embed.proj"))
        for ours, part in parts.items():
            theirs = theirs.replace(f".{ours}", f".{part}")
        if ".mixer.q_proj" in theirs:
            theirs, tensor = theirs.replace("mixer.q_proj", "attn.qkv"), tensor.repeat(3, *[1] * (tensor.ndim - 1))
        has_first_axis = theirs.endswith("_bias") and theirs[-7:-5] not in ("an", "na")
        made[theirs] = torch.rand(1, *tensor.shape) if has_first_axis else torch.rand_like(tensor)
    return made


def test_loads_the_authors_layout_strictly() -> None:
    model = AgentDeiT(SMALL)
    layout = authors_layout(model)
    model.load_reference(layout)
    assert torch.equal(model.blocks[0].mixer.qkv.weight, layout["blocks.0.attn.qkv.weight"])
    assert torch.equal(model.blocks[1].mixer.bias.key_class, layout["blocks.1.attn.ac_bias"][0])
    assert torch.equal(model.blocks[2].mixer.k_proj.bias, layout["blocks.2.attn.qkv.bias"][12:24])
    assert torch.equal(model.positions, layout["pos_embed"])
    backbones.check_strict(model, layout)


def test_every_parameter_learns() -> None:
    model = AgentDeiT(SMALL)
    scores = model(torch.randn(2, 2, *SIZE))
    assert scores.shape == (2, 5)
    (scores * torch.randn_like(scores)).sum().backward()
    for name, parameter in model.named_parameters():
        # softmax does not see what is added to all scores of a query
        if name != "blocks.2.mixer.k_proj.bias":
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 57), (20, 20)])
def test_takes_any_size(size: tuple[int, int]) -> None:
    model = AgentDeiT(SMALL).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 2, *size)).isfinite().all()
        tokens, space = model.tokens(torch.randn(2, 2, *size))
    assert space == (-(-size[0] // 4), -(-size[1] // 4))
    assert tokens.shape == (2, 1 + space[0] * space[1], 12)


def test_checkpointing_changes_nothing_but_memory() -> None:
    backbones.check_checkpointing(AgentDeiT, replace(SMALL, drop_path=0.3), SIZE)


def test_all_forms_agree() -> None:
    backbones.check_forms(AgentDeiT(replace(SMALL, num_layers=2, agent_layers=1)), SIZE)


def test_depth_is_dropped_more_and_more() -> None:
    model = AgentDeiT(replace(SMALL, drop_path=0.3))
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.0, 0.15, 0.3])


def test_ill_images_are_named() -> None:
    backbones.check_rejects(AgentDeiT(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent_layers": 4}, "agent_layers must be from 0 to num_layers=3, got 4"),
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive, got 0.0"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"num_agents": 3}, "num_agents must be a positive square"),
        ({"drop_path": 1.0}, "drop_path must be in"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentDeiT(replace(SMALL, **changes))
