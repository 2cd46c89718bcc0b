"""EfficientNet as an encoder: timm's network without its classifier, for images of any number of channels.

Paper: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", Tan and Le, ICML 2019,
https://arxiv.org/abs/1905.11946, table 1.
The parts are those of `timm.create_model("efficientnet_b0", features_only=True)`, under timm's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly

Maps = Float[Tensor, "batch channels y x"]
Run = Callable[[nn.Module, Maps], Maps]
STRIDES = (2, 4, 8, 16, 32)
PUBLISHED_CHANNELS = 3
STEM = "conv_stem.weight"
_CLASSIFIER = re.compile(r"^(conv_head|bn2|classifier)\.")
"""What timm's classifier has beyond the encoder."""


class EfficientNetEncoder(nn.Module):
    """Maps of 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's size.

    Args:
        name: timm's name of an EfficientNet.
        in_channels: channels of the images.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.

    Raises:
        ImportError: timm is not installed.
        ValueError: the name is not an EfficientNet's with maps at these strides.
    """

    def __init__(self, name: str, *, in_channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        network = _timm_network(name, in_channels=in_channels, drop_path=drop_path)
        self.name = name
        self.channels: tuple[int, ...] = tuple(network.feature_info.channels())
        self.conv_stem, self.bn1, self.blocks = network.conv_stem, network.bn1, network.blocks
        self._last_of_stride = tuple(int(path.rpartition(".")[2]) for path in network.feature_info.module_name())
        self.frozen = False

    def forward(self, images: Maps, run: Run | None = None) -> tuple[Maps, ...]:
        """The last map of every size, the finest first.

        Args:
            images: whose maps.
            run: applies a stage to a map; None = the stage itself. Recomputation goes through it.
        """
        x, maps = self.bn1(self.conv_stem(images)), []
        for number, stage in enumerate(self.blocks):
            x = stage(x) if run is None else run(stage, x)
            if number in self._last_of_stride:
                maps.append(x)
        return tuple(maps)

    def freeze(self, frozen: bool = True) -> None:
        """Keep weights and statistics as they are, or let go of them again."""
        self.frozen = frozen
        self.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode; a frozen encoder stays in evaluation."""
        return super().train(mode and not self.frozen)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load timm's layout, with or without the classifier, which is left out; the stem is fitted to the images.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        kept = {name: tensor for name, tensor in state_dict.items() if not _CLASSIFIER.match(name)}
        in_channels = self.conv_stem.in_channels
        if STEM in kept and kept[STEM].ndim == 4 and kept[STEM].shape[1] == PUBLISHED_CHANNELS != in_channels:
            kept[STEM] = fitted_stem(kept[STEM], in_channels)
        load_strictly(self, kept)

    def load_pretrained(self) -> None:
        """Load timm's weights of this network for ImageNet, which are downloaded unless they were before."""
        import timm

        self.load_reference(timm.create_model(self.name, pretrained=True).state_dict())


def fitted_stem(
    weight: Float[Tensor, "filters channels y x"], in_channels: int
) -> Float[Tensor, "filters in_channels y x"]:
    """Kernels for images of other channels: repeated in turn and scaled so that equal channels give the same response.

    Args:
        weight: of the stem, for `channels` channels.
        in_channels: channels of the images; 1 takes the sum of the kernels.
    """
    channels = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, torch.arange(in_channels) % channels] * (channels / in_channels)


def _timm_network(name: str, *, in_channels: int, drop_path: float) -> Any:
    import timm

    try:
        network: Any = timm.create_model(
            name, features_only=True, in_chans=in_channels, drop_path_rate=drop_path, pretrained=False
        )
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"encoder must be an EfficientNet that timm knows, got {name!r}: {error}") from None
    parts = [part for part, _ in network.named_children()]
    strides = tuple(network.feature_info.reduction()) if hasattr(network, "feature_info") else ()
    if parts != ["conv_stem", "bn1", "blocks"] or strides != STRIDES:
        raise ValueError(f"encoder must be an EfficientNet with maps at strides {STRIDES}, got {name!r} with {strides}")
    return network
