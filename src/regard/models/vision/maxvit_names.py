"""MaxViT's published layouts as ours: the authors' TensorFlow variables, and timm's names.

The authors' variables are those of google-research/maxvit@70a47072, `maxvit/models/maxvit.py`. What precedes a variable
depends on how the graph was built (`maxvit/`, `maxvit/stem/`, nothing), so it is found by the end of its name.
"""

from __future__ import annotations

import re

from regard.layers.relative_attention import ATTENTION_PLACES, TIMM_NAMES
from regard.layers.tensorflow_names import CONV_LEAVES, LINEAR_LEAVES, NORM_LEAVES, Leaves, Place

_LEAVES: dict[str, Leaves] = {"conv": CONV_LEAVES, "linear": LINEAR_LEAVES, "norm": NORM_LEAVES}
_NETWORK = {
    "conv_0": ("stem.conv1", "conv"),
    "norm_0": ("stem.norm", "norm"),
    "conv_1": ("stem.conv2", "conv"),
    "final_layer_norm": ("head_norm", "norm"),
    "inner_dense": ("head_proj", "linear"),
    "logit_dense": ("head", "linear"),
}
"""Layers outside blocks: ours, and the kind of the layer."""
_MBCONV = {
    "pre_norm": ("pre_norm", "norm"),
    "expand_conv": ("expand_conv", "conv"),
    "expand_norm": ("expand_norm", "norm"),
    "depthwise_conv": ("depthwise_conv", "conv"),
    "depthwise_norm": ("depthwise_norm", "norm"),
    "se/reduce_conv2d": ("gate.down_proj", "conv"),
    "se/expand_conv2d": ("gate.up_proj", "conv"),
    "shrink_conv": ("shrink_conv", "conv"),
    "shortcut_conv": ("shortcut_conv", "conv"),
}
"""Layers of an MBConv."""
_ATTENTION = {
    "attn_layer_norm": ("mixer_norm", "norm"),
    "ffn/expand_dense": ("mlp.up_proj", "linear"),
    "ffn/shrink_dense": ("mlp.down_proj", "linear"),
    "ffn_layer_norm": ("mlp_norm", "norm"),
}
"""Layers around an attention; the second one of a block and its layers end in `_1`."""

TIMM_RULES = (
    (r"^stem\.norm1\.", "stem.norm."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
    (r"\.conv\.shortcut\.expand\.", ".conv.shortcut_conv."),
    (r"\.conv\.conv1_1x1\.", ".conv.expand_conv."),
    (r"\.conv\.norm1\.", ".conv.expand_norm."),
    (r"\.conv\.conv2_kxk\.", ".conv.depthwise_conv."),
    (r"\.conv\.norm2\.", ".conv.depthwise_norm."),
    (r"\.conv\.se\.fc1\.", ".conv.gate.down_proj."),
    (r"\.conv\.se\.fc2\.", ".conv.gate.up_proj."),
    (r"\.conv\.conv3_1x1\.", ".conv.shrink_conv."),
    (r"\.attn_block\.", ".attention.0."),
    (r"\.attn_grid\.", ".attention.1."),
    (r"(\.attention\.\d+)\.norm1\.", r"\1.mixer_norm."),
    (r"(\.attention\.\d+)\.norm2\.", r"\1.mlp_norm."),
    (r"(\.attention\.\d+)\.attn\.", r"\1.mixer."),
    (r"(\.attention\.\d+)\.mlp\.fc1\.", r"\1.mlp.up_proj."),
    (r"(\.attention\.\d+)\.mlp\.fc2\.", r"\1.mlp.down_proj."),
    *TIMM_NAMES,
    (r"^head\.norm\.", "head_norm."),
    (r"^head\.pre_logits\.fc\.", "head_proj."),
    (r"^head\.fc\.", "head."),
)
"""timm's names (`maxvit_*_tf_*`) as ours."""


def network_place(name: str) -> Place | None:
    """Where a variable of the network belongs; None for one that is not known."""
    name = name.removesuffix(":0")
    in_block = _IN_BLOCK.search(name)
    if in_block is not None:
        stage, block, rest = in_block.groups()
        place = block_place(rest)
        return None if place is None else place.below(f"stages.{int(stage)}.{int(block)}.")
    return _leaf("/".join(name.split("/")[-2:]), _NETWORK)


def block_place(name: str) -> Place | None:
    """Where a variable of a block belongs; the block's own name may precede it."""
    in_block = _IN_BLOCK.search(name)
    if in_block is not None:
        name = in_block[3]
    part, _, rest = name.removesuffix(":0").partition("/")
    if part == "mbconv":
        place = _leaf(rest, _MBCONV)
        return None if place is None else place.below("conv.")
    around = re.fullmatch(r"(attention|attn_layer_norm|ffn|ffn_layer_norm)(?:_(\d+))?", part)
    if around is None:
        return None
    if around[1] == "attention":
        place = ATTENTION_PLACES.get(rest)
        place = None if place is None else place.below("mixer.")
    else:
        place = _leaf(f"{around[1]}/{rest}", _ATTENTION)
    return None if place is None else place.below(f"attention.{int(around[2] or 0)}.")


_IN_BLOCK = re.compile(r"(?:^|/)block_(\d+)_(\d+)/(.+)$")


def _leaf(name: str, layers: dict[str, tuple[str, str]]) -> Place | None:
    layer, _, leaf = name.rpartition("/")
    if layer not in layers:
        return None
    own, kind = layers[layer]
    if leaf not in _LEAVES[kind]:
        return None
    own_leaf, axes = _LEAVES[kind][leaf]
    return Place(name=f"{own}.{own_leaf}", axes=axes)
