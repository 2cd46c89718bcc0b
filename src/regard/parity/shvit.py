"""Parity with ysj9909/SHViT: single-head attention, a block in training, and a whole network."""

from __future__ import annotations

from torch import nn

from regard.layers.reference_names import Rules, rename
from regard.mixers.spatial.shsa import SHSA_NAMES, SingleHeadAttention
from regard.models.vision.shvit import BLOCK_NAMES, SHViT, SHViTBlock, SHViTConfig, reference_names
from regard.parity.adapters import Case, Leaf, Outcome, Reshaped, adapter


def leaves(case: Case, module: nn.Module, rules: Rules) -> dict[str, Leaf]:
    """Our parameters under the reference's names; what it holds as a 1x1 convolution may be a matrix of ours."""
    parameters = dict(module.named_parameters())
    found: dict[str, Leaf] = {}
    for gradients in case.gradients.values():
        for name, gradient in gradients.items():
            if name.startswith("in."):
                continue
            own = parameters[rename(name, rules)]
            found[name] = own if own.shape == gradient.shape else Reshaped(own, gradient.shape)
    return found


@adapter("model/shvit.py:SHSA")
def single_head_attention(case: Case) -> Outcome:
    """The attention alone."""
    config = case.config
    layer = SingleHeadAttention(config["dim"], partial_dim=config["pdim"], head_dim=config["qk_dim"]).eval()
    layer.load_reference(case.state)
    x = case.inputs["x"]
    return Outcome(outputs={"y": layer(x)}, leaves={"in.x": x, **leaves(case, layer, SHSA_NAMES)})


@adapter("model/shvit.py:BasicBlock")
def block(case: Case) -> Outcome:
    """A block, with the statistics of its norms after a step of training."""
    config = case.config
    channels = config["dim"]
    mixer = SingleHeadAttention(channels, partial_dim=config["pdim"], head_dim=config["qk_dim"])
    layer = SHViTBlock(mixer, channels=channels, hidden=2 * channels)
    layer.load_reference(case.state)
    layer.train(case.mode == "train")
    x = case.inputs["x"]
    outputs = {"y": layer(x)}
    buffers = dict(layer.named_buffers())
    outputs |= {
        name: buffers[rename(name.removeprefix("after."), BLOCK_NAMES)]
        for name in case.expected
        if name.startswith("after.")
    }
    return Outcome(outputs=outputs, leaves={"in.x": x, **leaves(case, layer, BLOCK_NAMES)})


@adapter("model/shvit.py:SHViT")
def shvit(case: Case) -> Outcome:
    """The whole classifier."""
    config = case.config
    (head_dim,) = set(config["qk_dim"])
    model = SHViT(
        SHViTConfig(
            in_channels=config["in_chans"],
            num_classes=config["num_classes"],
            dims=tuple(config["embed_dim"]),
            depths=tuple(config["depth"]),
            partial_dims=tuple(config["partial_dim"]),
            types=tuple(config["types"]),
            head_dim=head_dim,
        )
    ).eval()
    model.load_reference(case.state)
    x = case.inputs["x"]
    rules = reference_names(model.config)
    return Outcome(outputs={"y": model(x)}, leaves={"in.x": x, **leaves(case, model, rules)})
