"""What the three-dimensional U-Nets for whole volumes share: sizes, encoder, heads, and the authors' layer names.

Compared with dbouget/mri_brain_tumor_segmentation@7af4e77a, `src/Models/UNet/`. Heads give logits; the softmax that the
authors put behind them is the loss's and the prediction's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.keras_names import from_keras
from regard.layers.tensorflow_names import Leaves
from regard.layers.volume_blocks import VolumeEncoder, initialise_as_keras
from regard.models.medical.segmenter import Segmenter

Volumes = Float[Tensor, "batch channels x y z"]
Scores = Float[Tensor, "batch classes x y z"]

Order = dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class VolumeUNetConfig:
    """Sizes of a U-Net for volumes.

    Args:
        in_channels: channels of the volumes.
        num_classes: number of exclusive classes, the background first.
        filters: channels of each level, the finest first; between two of them sides are halved.
        multi_scale_input: the volume, shrunken, enters at every level of the encoder.
        deep_supervision: a head at every level of the decoder.
        batch_norm: batch norms in the blocks.
        norm_momentum: share of a batch in the running statistics of batch norms: 0.01 in Keras, which needs some 500
            steps to forget where it began.
        dropout: rate at which the blocks drop whole channels.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
        pooling_ties: positions nearer than this to a pooling's maximum all get its gradient: 1e-5 in the authors'
            TensorFlow on CPUs; 0 = one position alone.
    """

    in_channels: int = 1
    num_classes: int = 2
    filters: tuple[int, ...] = (16, 32, 128, 256, 256)
    multi_scale_input: bool = False
    deep_supervision: bool = False
    batch_norm: bool = True
    norm_momentum: float = 0.01
    dropout: float = 0.0
    checkpointing: bool = False
    pooling_ties: float = 0.0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(
                f"exclusive classes are at least 2, the background among them, got num_classes={self.num_classes}"
            )
        if len(self.filters) < 2 or min(self.filters) < 1:
            raise ValueError(f"filters must be positive, for at least 2 levels, got {self.filters}")
        check_rate("dropout", self.dropout)
        if not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum must be in (0, 1], got {self.norm_momentum}")
        if not self.pooling_ties >= 0:
            raise ValueError(f"pooling_ties must not be negative, got {self.pooling_ties}")

    @property
    def block_momentum(self) -> float | None:
        """Of the batch norms in the blocks; None = there are none."""
        return self.norm_momentum if self.batch_norm else None


def check_rate(name: str, rate: float) -> None:
    """Refuse what is no rate of dropout.

    Raises:
        ValueError: a number outside 0 to 1, or 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must be in [0, 1), got {rate}")


class VolumeUNet(Segmenter):
    """An encoder, a decoder of the subclass, and heads; a subclass is final.

    Args:
        config: its sizes.
    """

    spatial_dims: ClassVar[int] = 3
    task_settings: ClassVar[Mapping[str, str]] = {"view": "whole", "targets": "classes", "size": "48"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = VolumeEncoder(
            config.in_channels,
            config.filters,
            pyramid=config.multi_scale_input,
            norm=config.block_momentum,
            dropout=config.dropout,
            checkpointing=config.checkpointing,
            ties=config.pooling_ties,
        )
        self.build_decoder()
        # the coarsest first, as they are made in the reference
        supervised = self.decoded_filters if config.deep_supervision else self.decoded_filters[-1:]
        self.heads = nn.ModuleList(nn.Conv3d(width, config.num_classes, 1) for width in supervised)
        initialise_as_keras(self)
        # kernels whose channels lie last make maps so, which convolves and pools up to 1.6 times as fast on CPUs
        self.to(memory_format=torch.channels_last_3d)

    @property
    def stride(self) -> int:
        """All poolings halve."""
        return int(2 ** (len(self.config.filters) - 1))

    @property
    def smallest(self) -> int:
        """More than 4 positions are needed before every pooling."""
        return 3 * self.stride

    @property
    def decoded_filters(self) -> tuple[int, ...]:
        """Channels of the decoder's levels, the coarsest first."""
        return tuple(self.config.filters[-2::-1])

    @abstractmethod
    def build_decoder(self) -> None:
        """Make what stands between the encoder and the heads."""

    @abstractmethod
    def decoded(self, maps: Sequence[Volumes]) -> list[Volumes]:
        """The maps of the decoder, the coarsest first, from those of the encoder, the finest first."""

    @abstractmethod
    def decoder_order(self, order: Order) -> None:
        """Append the decoder's modules to `order`, by kind, as Keras makes them in the reference."""

    def outputs(self, x: Volumes) -> tuple[Scores, ...]:
        """Logits at every supervised level, the finest first.

        Raises:
            ValueError: shapes that do not fit.
        """
        self.check_input(x)
        maps = self.decoded(self.encoder(x))[-len(self.heads) :]
        return tuple(head(part) for head, part in zip(self.heads, maps, strict=True))[::-1]

    def forward(self, x: Volumes) -> Scores:
        """Logits at every position.

        Raises:
            ValueError: shapes that do not fit.
        """
        self.check_input(x)
        scores: Tensor = self.heads[-1](self.decoded(self.encoder(x))[-1])
        return scores

    def reference_order(self) -> Order:
        """Our modules by kind, in the order in which Keras makes them in the reference."""
        order: Order = {"conv3d": [], "conv3d_transpose": [], "batch_normalization": []}
        for level in range(len(self.config.filters)):
            if self.config.multi_scale_input and 0 < level < len(self.config.filters) - 1:
                order["conv3d"].append(f"encoder.pyramid.{level - 1}.conv")
            self.block_order(order, f"encoder.blocks.{level}")
        self.decoder_order(order)
        order["conv3d"] += [f"heads.{number}" for number in range(len(self.heads))]
        return order

    def block_order(self, order: Order, name: str) -> None:
        """Append a block's modules to `order`."""
        for half in ("first", "second"):
            order["conv3d"].append(f"{name}.{half}.conv")
            if self.config.batch_norm:
                order["batch_normalization"].append(f"{name}.{half}.norm")

    def reference_leaves(self) -> Mapping[str, Leaves]:
        """The variables of kinds of layers that Keras does not have itself."""
        return {}

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: a Keras network's variables, such as `conv3d_4.kernel`.

        Layers are matched in the order of their numbers, which may have gaps.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        own = self.state_dict()
        load_strictly(self, from_keras(state_dict, self.reference_order(), own, more=self.reference_leaves()))
