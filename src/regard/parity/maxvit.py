"""Parity with google-research/maxvit: its attention, a strided block, and a whole network, in TensorFlow's layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from regard.layers.relative_attention import attention_place
from regard.layers.tensorflow_names import Place
from regard.mixers.spatial.maxvit_block import MaxViTBlockAttention
from regard.models.vision.maxvit import MaxViT, MaxViTConfig, block_of
from regard.models.vision.maxvit_names import block_place, network_place
from regard.parity.adapters import Case, Leaf, Outcome, adapter


class _Variable:
    """A variable of theirs that is a part of a parameter of ours, with its axes in another order."""

    def __init__(self, place: Place, parameter: Tensor, shape: Sequence[int]) -> None:
        self._place, self._parameter, self._shape = place, parameter, shape

    def parts(self) -> list[Tensor]:
        """Our parameter."""
        return [self._parameter]

    def assemble(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient in their layout."""
        return self._place.theirs(gradients[0], self._shape)


def _leaves(case: Case, module: nn.Module, place_of: Callable[[str], Place | None]) -> dict[str, Leaf]:
    own = dict(module.named_parameters())
    leaves: dict[str, Leaf] = {"in.x": case.inputs["x"]}
    for name, gradient in case.gradients[""].items():
        place = place_of(name)
        if place is not None:
            leaves[name] = _Variable(place, own[place.name], gradient.shape)
    return leaves


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


@adapter("maxvit/models/maxvit.py:Attention")
def attention(case: Case) -> Outcome:
    """Tokens of one square window: a map that a single window fills."""
    channels, x = case.config["hidden_size"], case.inputs["x"]
    side = math.isqrt(x.shape[1])
    layer = MaxViTBlockAttention(channels, num_heads=channels // case.config["head_size"], window_size=side)
    layer.load_reference(case.state)
    y = layer(_channels_first(x.unflatten(1, (side, side))))
    return Outcome(outputs={"y": y.flatten(2).transpose(1, 2)}, leaves=_leaves(case, layer, attention_place))


@adapter("maxvit/models/maxvit.py:MaxViTBlock")
def block(case: Case) -> Outcome:
    """The first block of a stage, which strides."""
    config, x = case.config, case.inputs["x"]
    sizes = MaxViTConfig(
        stem_channels=x.shape[-1],
        dims=(config["hidden_size"],),
        depths=(1,),
        strides=(config["pool_stride"],),
        **_shared_sizes(case),
    )
    module = block_of(sizes, 0, first=True, drop_path=0.0).eval()
    module.load_reference(case.state)
    y = module(_channels_first(x)).permute(0, 2, 3, 1)
    return Outcome(outputs={"y": y}, leaves=_leaves(case, module, block_place))


@adapter("maxvit/models/maxvit.py:MaxViT")
def maxvit(case: Case) -> Outcome:
    """The whole classifier."""
    config, x = case.config, case.inputs["x"]
    model = MaxViT(
        MaxViTConfig(
            in_channels=x.shape[-1],
            num_classes=config["num_classes"],
            stem_channels=config["stem_hsize"][0],
            dims=tuple(config["hidden_size"]),
            depths=tuple(config["num_blocks"]),
            strides=(2,) * len(config["num_blocks"]),
            **_shared_sizes(case),
        )
    ).eval()
    model.load_reference(case.state)
    return Outcome(outputs={"y": model(_channels_first(x))}, leaves=_leaves(case, model, network_place))


def _shared_sizes(case: Case) -> dict[str, Any]:
    """Their one ratio widens both convolutions and perceptrons."""
    config = case.config
    return {
        "window_size": config["window_size"],
        "grid_size": config["grid_size"],
        "head_dim": config["head_size"],
        "expand_ratio": config["expansion_rate"],
        "mlp_ratio": config["expansion_rate"],
    }
