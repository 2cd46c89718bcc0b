"""Parity with dingmyu/davit: both attentions, their blocks, and a whole network."""

from __future__ import annotations

from torch import Tensor

from regard.contract import FeatureMixer
from regard.mixers.channel.davit_channel import DaViTChannelAttention
from regard.mixers.spatial.davit_window import DaViTWindowAttention
from regard.models.vision.davit import BLOCK_NAMES, DAVIT_NAMES, DaViT, DaViTBlock, DaViTConfig
from regard.parity.adapters import Case, Outcome, adapter, renamed_leaves

_ATTENTION_NAMES = ((r"^proj\.", "o_proj."),)


def _as_map(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, size)


def _as_tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


@adapter("timm/models/davit.py:ChannelAttention")
def channel_attention(case: Case) -> Outcome:
    """Tokens without a size: a map with one axis."""
    config = case.config
    layer = DaViTChannelAttention(config["dim"], num_groups=config["num_heads"], qkv_bias=config["qkv_bias"])
    layer.load_reference(case.state)
    x = case.inputs["x"]
    y = _as_tokens(layer(_as_map(x, (x.shape[1],))))
    return Outcome(outputs={"y": y}, leaves={"in.x": x, **renamed_leaves(case, layer, _ATTENTION_NAMES)})


def _block(case: Case, mixer: FeatureMixer) -> Outcome:
    channels = case.config["dim"]
    block = DaViTBlock(mixer, channels=channels, hidden=round(channels * case.config["mlp_ratio"])).eval()
    block.load_reference(case.state)
    x = case.inputs["x"]
    y = _as_tokens(block(_as_map(x, tuple(case.call["kwargs"]["size"]))))
    return Outcome(outputs={"y": y}, leaves={"in.x": x, **renamed_leaves(case, block, BLOCK_NAMES)})


@adapter("timm/models/davit.py:ChannelBlock")
def channel_block(case: Case) -> Outcome:
    """The block around channel attention."""
    config = case.config
    mixer = DaViTChannelAttention(config["dim"], num_groups=config["num_heads"], qkv_bias=config["qkv_bias"])
    return _block(case, mixer)


@adapter("timm/models/davit.py:SpatialBlock")
def spatial_block(case: Case) -> Outcome:
    """The block around window attention, on a map that the windows do not fill."""
    config = case.config
    mixer = DaViTWindowAttention(
        config["dim"],
        num_heads=config["num_heads"],
        window_size=config["window_size"],
        qkv_bias=config["qkv_bias"],
    )
    return _block(case, mixer)


@adapter("timm/models/davit.py:DaViT")
def davit(case: Case) -> Outcome:
    """The whole classifier."""
    config = case.config
    model = DaViT(
        DaViTConfig(
            in_channels=config["in_chans"],
            num_classes=config["num_classes"],
            depths=tuple(config["depths"]),
            patch_size=config["patch_size"],
            dims=tuple(config["embed_dims"]),
            num_heads=tuple(config["num_heads"]),
            window_size=config["window_size"],
            mlp_ratio=config["mlp_ratio"],
            qkv_bias=config["qkv_bias"],
            drop_path=config["drop_path_rate"],
        )
    ).eval()
    model.load_reference(case.state)
    x = case.inputs["x"]
    leaves = renamed_leaves(case, model, (*DAVIT_NAMES, *BLOCK_NAMES))
    return Outcome(outputs={"y": model(x)}, leaves={"in.x": x, **leaves})
