"""Agent-Swin: counted sizes, timm's Swin where no block has agents, windows of agents, the authors' layout, forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import backbones
import pytest
import torch

from regard.layers.shifted_window import ShiftedWindowAttention
from regard.metadata import Variant
from regard.mixers.spatial.agent import AgentAttention2d
from regard.models.vision.agent_swin import AgentSwin, AgentSwinBlock, AgentSwinConfig

SMALL = AgentSwinConfig(
    image_size=32,
    in_channels=2,
    num_classes=5,
    dims=(6, 12, 24),
    num_heads=(1, 2, 4),
    depths=(2, 3, 1),
    agent_depths=(2, 1, 0),
    num_agents=(9, 4, 1),
    window_size=8,
    local_window_size=3,
    mlp_ratio=1.5,
)
SIZE = (27, 41)


@pytest.mark.parametrize(("name", "variant"), AgentSwin.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    backbones.check_parameters(AgentSwin, variant)


def test_macs_are_those_reported() -> None:
    # all others are counted by a claim
    backbones.check_macs(AgentSwin, AgentSwin.VARIANTS["agent_swin_tiny"])


class Renamed:
    """The network, which loads timm's names of Swin's parts."""

    def __init__(self, model: AgentSwin) -> None:
        self.model = model

    def load_reference(self, state_dict: dict[str, torch.Tensor]) -> None:
        made = {}
        for name, tensor in state_dict.items():
            parts = name.split(".")
            if parts[0] == "layers" and parts[2] == "downsample":
                parts[1] = str(int(parts[1]) - 1)
            made[".".join(parts).replace("head.fc.", "head.")] = tensor
        self.model.load_reference(made)

    def eval(self) -> Any:
        return self.model.eval()


def swins(**options: Any) -> tuple[Renamed, torch.nn.Module]:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=11, **options
    )
    config = AgentSwinConfig(
        dims=(24, 48), num_heads=(2, 4), depths=(2, 2), agent_depths=(0, 0), num_agents=(1, 1), num_classes=11
    )
    return Renamed(AgentSwin(config)), theirs


def test_is_timms_network_without_agents() -> None:
    ours, theirs = swins()
    backbones.check_equals_timm(ours, theirs, [(224, 224)])


def test_is_timms_network_on_other_maps() -> None:
    ours, theirs = swins(strict_img_size=False)
    # maps of whole windows: where it must pad, timm rolls first, so that its mask hides other positions
    backbones.check_equals_timm(ours, theirs, [(168, 280)])


@pytest.mark.slow
def test_is_timms_tiny_network_without_agents() -> None:
    timm = pytest.importorskip("timm")
    ours = Renamed(AgentSwin(replace(AgentSwin.VARIANTS["agent_swin_tiny"].config, agent_depths=(0, 0, 0, 0))))
    backbones.check_equals_timm(ours, timm.create_model("swin_tiny_patch4_window7_224"), [(224, 224)])


def authors_layout(model: AgentSwin) -> dict[str, torch.Tensor]:
    """Random weights under the authors' names, written by a rule of the test's own."""
    tables = {"key_grid": "an", "query_grid": "na", "key_rows": "ah", "key_columns": "aw"}
    tables |= {"query_rows": "ha", "query_columns": "wa"}
    parts = {"mixer_norm": "norm1", "mlp_norm": "norm2", "mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    parts |= {"mixer.qkv": "attn.qkv", "mixer.o_proj": "attn.proj", "mixer.agents.local": "attn.dwc"}
    parts |= {f"mixer.agents.bias.{ours}": f"attn.{theirs}_bias" for ours, theirs in tables.items()}
    parts |= {"mixer.offset_bias": "attn.relative_position_bias_table"}
    made = {}
    for name, tensor in model.state_dict().items():
        theirs = name.replace("head_norm", "norm")
        if name.startswith("stages."):
            _, stage, kind, *rest = name.split(".")
            inner = ".".join(rest)
            if kind == "blocks":
                theirs = f"layers.{stage}.blocks.{inner}"
                for ours, part in parts.items():
                    theirs = theirs.replace(f".{ours}", f".{part}")
            elif stage == "0":
                theirs = "patch_embed." + inner.replace("conv", "proj")
            else:
                theirs = f"layers.{int(stage) - 1}.downsample.{inner}"
        has_first_axis = theirs.endswith("_bias") and theirs[-7:-5] not in ("an", "na")
        made[theirs] = torch.rand(1, *tensor.shape) if has_first_axis else torch.rand_like(tensor)
    return made


def test_loads_the_authors_layout_strictly() -> None:
    model = AgentSwin(SMALL)
    layout = authors_layout(model)
    buffers = {"layers.1.blocks.1.attn_mask": torch.zeros(4, 9, 9)}
    buffers |= {"layers.1.blocks.1.attn.relative_position_index": torch.zeros(9, 9)}
    model.load_reference({**layout, **buffers})
    assert torch.equal(
        model.stages[1].blocks[2].mixer.offset_bias, layout["layers.1.blocks.2.attn.relative_position_bias_table"]
    )
    assert torch.equal(
        model.stages[0].blocks[1].mixer.agents.bias.query_rows, layout["layers.0.blocks.1.attn.ha_bias"][0]
    )
    assert torch.equal(model.stages[2].embedding.reduction.weight, layout["layers.1.downsample.reduction.weight"])
    assert torch.equal(model.stages[0].embedding.conv.weight, layout["patch_embed.proj.weight"])
    backbones.check_strict(model, layout)


def test_blocks_are_of_both_kinds_and_shift_in_turn() -> None:
    blocks = [block for stage in AgentSwin(SMALL).stages for block in stage.blocks]
    kinds = [type(block.mixer) for block in blocks]
    assert kinds == [AgentAttention2d] * 3 + [ShiftedWindowAttention] * 3
    assert [block.mixer.shifted for block in blocks[3:]] == [True, False, False]
    assert all(block.window_size is None for block in blocks[:3])


def test_ordinary_windows_are_an_eighth_but_at_least_7() -> None:
    for window, expected in ((56, 7), (72, 9), (96, 12), (8, 7)):
        assert AgentSwinConfig(window_size=window).ordinary_window == expected
    assert AgentSwinConfig(local_window_size=4).ordinary_window == 4


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("space", [(8, 8), (5, 9), (3, 10), (1, 1)])
def test_agents_in_windows(shifted: bool, space: tuple[int, int]) -> None:
    mixer = AgentAttention2d(4, num_heads=2, num_agents=4, window_size=4).double()
    block = AgentSwinBlock(mixer, channels=4, hidden=8, window_size=4, shifted=shifted).double().eval()
    x = torch.randn(2, *space, 4, dtype=torch.float64)
    sy, sx = min(4, space[0]), min(4, space[1])
    padded = torch.nn.functional.pad(x, (0, 0, 0, -space[1] % sx, 0, -space[0] % sy))
    by = [2 if shifted and length > 4 else 0 for length in space]
    rolled = padded.roll((-by[0], -by[1]), (1, 2))
    expected = torch.zeros_like(rolled)
    for top in range(0, rolled.shape[1], sy):
        for left in range(0, rolled.shape[2], sx):
            window = rolled[:, top : top + sy, left : left + sx].permute(0, 3, 1, 2)
            expected[:, top : top + sy, left : left + sx] = mixer(window).permute(0, 2, 3, 1)
    expected = expected.roll((by[0], by[1]), (1, 2))[:, : space[0], : space[1]]
    torch.testing.assert_close(block.mix(x), expected)


def test_maps_have_the_sizes_that_they_say() -> None:
    backbones.check_maps(AgentSwin(SMALL), SIZE)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 64), (32, 32)])
def test_takes_any_size(size: tuple[int, int]) -> None:
    for model in (AgentSwin(SMALL), AgentSwin(replace(SMALL, window_size=3))):
        with torch.no_grad():
            assert model.eval()(torch.randn(2, 2, *size)).isfinite().all()


def test_checkpointing_changes_nothing_but_memory() -> None:
    backbones.check_checkpointing(AgentSwin, replace(SMALL, drop_path=0.3), SIZE)


@pytest.mark.slow
def test_all_forms_agree() -> None:
    few = {"dims": (6, 12), "num_heads": (1, 2), "depths": (1, 2), "agent_depths": (1, 0), "num_agents": (9, 4)}
    backbones.check_forms(AgentSwin(replace(SMALL, **few)), SIZE)


def test_ill_images_are_named() -> None:
    backbones.check_rejects(AgentSwin(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (2, 0, 1)}, "depths must have a positive number for each of the 3 stages"),
        ({"agent_depths": (2, 4, 0)}, "agent_depths must have for each of the 3 stages"),
        ({"window_size": 0}, "window_size and local_window_size must be positive, got 0 and 3"),
        ({"local_window_size": 0}, "window_size and local_window_size must be positive, got 8 and 0"),
        ({"mlp_ratio": 0.0}, "ratios of perceptrons must be positive"),
        ({"num_agents": (9, 5, 1)}, "num_agents must be a positive square"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentSwin(replace(SMALL, **changes))
