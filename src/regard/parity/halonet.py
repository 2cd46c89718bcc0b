"""Parity with timm's halo attention, since the authors published none: the layer, and whole networks."""

from __future__ import annotations

from torch import nn

from regard.layers.halo_attention import HALO_NAMES, HaloAttention
from regard.layers.reference_names import Rules
from regard.models.vision.halonet import HALONET_NAMES, HaloNet
from regard.models.vision.halonet_config import CONVOLUTION, HALO, HaloNetConfig
from regard.parity.adapters import Case, Leaf, Outcome, Reshaped, adapter, renamed_leaves

_KINDS = {"self_attn": HALO, "bottle": CONVOLUTION}


def _leaves(case: Case, module: nn.Module, rules: Rules) -> dict[str, Leaf]:
    """Matrices of ours are 1x1 convolutions there."""
    shapes = {name: tensor.shape for gradients in case.gradients.values() for name, tensor in gradients.items()}
    return {name: Reshaped(leaf, shapes[name]) for name, leaf in renamed_leaves(case, module, rules).items()}


@adapter("timm/layers/halo_attn.py:HaloAttn")
def halo_attention(case: Case) -> Outcome:
    """The layer, also with a stride."""
    config = case.config
    layer = HaloAttention(
        config["dim"],
        out_channels=config.get("dim_out"),
        num_heads=config["num_heads"],
        head_dim=config.get("dim_head"),
        block_size=config["block_size"],
        halo_size=config["halo_size"],
        stride=config.get("stride", 1),
        scale_pos_embed=config.get("scale_pos_embed", False),
    )
    layer.load_reference(case.state)
    x = case.inputs["x"]
    return Outcome(outputs={"y": layer(x)}, leaves={"in.x": x, **_leaves(case, layer, HALO_NAMES)})


@adapter("timm/models/byobnet.py:ByobNet")
@adapter("timm/models/byobnet.py:ByobNet (as timm/models/byoanet.py uses it)")
def network(case: Case) -> Outcome:
    """A whole classifier; the inner widths are read off the weights, whose number timm rounds."""
    config, attention = case.config, case.config["self_attn_kwargs"]
    stages = config["blocks"]
    model = HaloNet(
        HaloNetConfig(
            num_classes=config["num_classes"],
            stem=config["stem_type"],
            stem_channels=config["stem_chs"],
            blocks=tuple(_KINDS[stage["type"]] * stage["d"] for stage in stages),
            widths=tuple(
                case.state[f"stages.{number}.0.conv1_1x1.conv.weight"].shape[0] for number in range(len(stages))
            ),
            out_channels=tuple(stage["c"] for stage in stages),
            num_heads=(attention["num_heads"],) * len(stages),
            block_size=attention["block_size"],
            halo_size=attention["halo_size"],
            activation=config.get("act_layer", "relu"),
        )
    ).eval()
    model.load_reference(case.state)
    x = case.inputs["x"]
    return Outcome(outputs={"y": model(x)}, leaves={"in.x": x, **_leaves(case, model, HALONET_NAMES)})
