"""Where published variables and names belong."""

from __future__ import annotations

import pytest

from regard.layers.reference_names import rename
from regard.layers.tensorflow_names import Place
from regard.models.vision.maxvit_names import TIMM_RULES, block_place, network_place


@pytest.mark.parametrize(
    ("theirs", "ours", "axes"),
    [
        ("conv_0/kernel", "stem.conv1.weight", (3, 2, 0, 1)),
        ("maxvit/stem/norm_0/moving_variance:0", "stem.norm.running_var", (0,)),
        ("maxvit/final_layer_norm/gamma", "head_norm.weight", (0,)),
        ("maxvit/cls_head/inner_dense/weight", "head_proj.weight", (1, 0)),
        ("logit_dense/bias", "head.bias", (0,)),
        ("maxvit/block_02_04/mbconv/pre_norm/beta", "stages.2.4.conv.pre_norm.bias", (0,)),
        ("block_00_00/mbconv/se/reduce_conv2d/kernel", "stages.0.0.conv.gate.down_proj.weight", (3, 2, 0, 1)),
        ("block_00_01/ffn_1/shrink_dense/weight", "stages.0.1.attention.1.mlp.down_proj.weight", (1, 0)),
        ("block_00_01/attn_layer_norm/gamma:0", "stages.0.1.attention.0.mixer_norm.weight", (0,)),
        ("block_10_11/attention_1/o/weight", "stages.10.11.attention.1.mixer.o_proj.weight", (2, 0, 1)),
    ],
)
def test_variables_have_a_place(theirs: str, ours: str, axes: tuple[int, ...]) -> None:
    assert network_place(theirs) == Place(name=ours, axes=axes)


def test_values_are_the_last_third_of_the_projection() -> None:
    place = block_place("maxvit/block_00_00/attention/v/weight")
    assert place == Place(name="attention.0.mixer.qkv.weight", axes=(1, 2, 0), part=2, parts=3)


@pytest.mark.parametrize(
    "name",
    [
        "conv_2/kernel",
        "conv_0/gamma",
        "block_00_00/mbconv/other/kernel",
        "block_00_00/attention/r/weight",
        "block_00_00/ffn/weight",
        "block_00_00/elsewhere/weight",
        "global_step",
    ],
)
def test_other_variables_have_none(name: str) -> None:
    assert network_place(name) is None


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stem.norm1.weight", "stem.norm.weight"),
        ("stages.3.blocks.1.conv.norm1.running_mean", "stages.3.1.conv.expand_norm.running_mean"),
        ("stages.0.blocks.0.conv.shortcut.expand.bias", "stages.0.0.conv.shortcut_conv.bias"),
        ("stages.0.blocks.0.conv.se.fc2.weight", "stages.0.0.conv.gate.up_proj.weight"),
        (
            "stages.0.blocks.0.attn_grid.attn.rel_pos.relative_position_bias_table",
            "stages.0.0.attention.1.mixer.bias_table",
        ),
        ("stages.0.blocks.0.attn_block.norm2.weight", "stages.0.0.attention.0.mlp_norm.weight"),
        ("head.pre_logits.fc.weight", "head_proj.weight"),
        ("head.fc.bias", "head.bias"),
        ("head.norm.bias", "head_norm.bias"),
    ],
)
def test_timms_names_become_ours(theirs: str, ours: str) -> None:
    assert rename(theirs, TIMM_RULES) == ours
