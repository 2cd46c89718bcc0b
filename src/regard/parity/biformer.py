"""Parity with rayleizhu/BiFormer: both forms of the attention, and a whole network."""

from __future__ import annotations

from torch import Tensor

from regard.mixers.spatial.bilevel_routing import ROUTING_NAMES, BiLevelRoutingAttention
from regard.models.vision.biformer import BIFORMER_NAMES, BiFormer, BiFormerConfig
from regard.parity.adapters import Case, Leaf, Outcome, Reshaped, adapter, renamed_leaves


def _channels_first(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


@adapter("ops/bra_legacy.py:BiLevelRoutingAttention")
def bra_legacy(case: Case) -> Outcome:
    """The layer of the published weights, on maps whose channels come last."""
    config = case.config
    layer = BiLevelRoutingAttention(
        config["dim"],
        num_heads=config["num_heads"],
        regions_per_side=config["n_win"],
        topk=config["topk"],
        qk_dim=config["qk_dim"],
        lepe_kernel_size=config["side_dwconv"],
        kv_downsample_mode=config["kv_downsample_mode"],
        padding="before_projection" if config["auto_pad"] else "none",
    )
    layer.load_reference(case.state)
    x = case.inputs["x"]
    y, routing = layer(_channels_first(x)), layer.route(_channels_first(x))
    return Outcome(
        outputs={
            "y": y.permute(0, 2, 3, 1),
            "routing_weight": routing.weights,
            "routing_index": routing.index,
        },
        leaves={"in.x": x, **renamed_leaves(case, layer, ROUTING_NAMES)},
    )


@adapter("ops/bra_nchw.py:nchwBRA")
def bra_nchw(case: Case) -> Outcome:
    """The refactoring, whose projections are 1x1 convolutions."""
    config = case.config
    layer = BiLevelRoutingAttention(
        config["dim"],
        num_heads=config["num_heads"],
        regions_per_side=config["n_win"],
        topk=config["topk"],
        lepe_kernel_size=config["side_dwconv"],
        padding="after_projection",
    )
    layer.load_reference(case.state)
    x = case.inputs["x"]
    leaves: dict[str, Leaf] = renamed_leaves(case, layer, ROUTING_NAMES)
    for name in ("qkv_linear.weight", "output_linear.weight"):
        leaves[name] = Reshaped(leaves[name], case.state[name].shape)
    return Outcome(outputs={"y": layer(x)}, leaves={"in.x": x, **leaves})


@adapter("models/biformer.py:BiFormer")
def biformer(case: Case) -> Outcome:
    """The whole classifier, of which every stage has the same ratio and number of regions."""
    config = case.config
    dims, scale = tuple(config["embed_dim"]), config["layer_scale_init_value"]
    (mlp_ratio,) = set(config["mlp_ratios"])
    model = BiFormer(
        BiFormerConfig(
            in_channels=config["in_chans"],
            num_classes=config["num_classes"],
            dims=dims,
            depths=tuple(config["depth"]),
            topks=tuple(config["topks"]),
            regions_per_side=(config["n_win"],) * len(dims),
            qk_dims=tuple(config["qk_dims"]),
            head_dim=config["head_dim"],
            mlp_ratio=mlp_ratio,
            lepe_kernel_size=config["side_dwconv"],
            conditional_position=config["before_attn_dwconv"] > 0,
            layer_scale=scale if scale > 0 else None,
            norm_first=config["pre_norm"],
        )
    ).eval()
    model.load_reference(case.state)
    x = case.inputs["x"]
    return Outcome(outputs={"y": model(x)}, leaves={"in.x": x, **renamed_leaves(case, model, BIFORMER_NAMES)})
