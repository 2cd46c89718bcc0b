"""Spatial attention of CBAM: a gate on positions from the mean and the maximum over channels.

Paper: "CBAM: Convolutional Block Attention Module", Woo et al., ECCV 2018, https://arxiv.org/abs/1807.06521,
equation 3. It is what MEDUSA's shared body is argued against: light, and isolated in every block.
Compared with Jongchan/attention-module@e4ee180f, `MODELS/cbam.py:SpatialGate`, and with timm's `SpatialAttn`, whose
layouts both are loaded.
Different from the code: [mean, maximum] as in the equation, where the code joins the maximum first; the batch norm of
the code, which the equation lacks, can be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from types import SimpleNamespace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.reference_names import rename_all
from regard.metadata import Example, Traits
from regard.mixers.channel.cbam_channel import CBAM_PAPER
from regard.ops.spatial_gate import channel_summary, scale_positions
from regard.registry import register

PAPER = replace(CBAM_PAPER, where="equation 3")
MOMENTUM = 0.01
"""Of the running statistics, as in the code."""
Features = Float[Tensor, "batch channels *space"]

_AUTHORS_CONV = "spatial.conv.weight"
_NAMES = ((r"^(spatial|conv)\.bn\.", "norm."), (r"^(spatial|conv)\.conv\.", "conv."))


class SpatialGate(FeatureMixer):
    """y = x * sigmoid(norm(f * [mean_c x, max_c x])); a subclass is final and says in how many dimensions.

    Args:
        channels: number of channels.
        kernel_size: taps per side of f, odd.
        norm: a batch norm on the scores.

    Raises:
        ValueError: an even kernel size, or one that is not positive.
    """

    dimensions: ClassVar[int]

    def __init__(self, channels: int, *, kernel_size: int = 7, norm: bool = True) -> None:
        super().__init__(channels)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        conv, norms = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[self.dimensions - 2]
        self.conv = conv(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = norms(1, momentum=MOMENTUM) if norm else nn.Identity()

    def mix(self, x: Features, *, context: Features | None) -> Features:
        """The input times the gate."""
        return scale_positions(x, self._scores(x))

    def gate(self, x: Features) -> Float[Tensor, "batch 1 *space"]:
        """The factor on each position of `x`, between 0 and 1.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        return self._scores(x).sigmoid()

    def _scores(self, x: Features) -> Float[Tensor, "batch 1 *space"]:
        return self.norm(self.conv(channel_summary(x)))

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """The convolution; summaries and scaling are no contractions."""
        return batch * prod(space) * 2 * options.kernel_size**cls.dimensions

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout (`spatial.conv.weight`, maximum first) or timm's (`conv.conv.weight`).

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        ordered = {
            name: tensor.flip(1) if name == _AUTHORS_CONV and tensor.ndim > 1 else tensor
            for name, tensor in state_dict.items()
        }
        load_strictly(self, rename_all(ordered, _NAMES))

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"channels={self.channels}"


@register(
    name="cbam_spatial",
    system="medusa",
    paper=PAPER,
    traits=Traits.of_feature_mixer(spatial_dims=(2,)),
    example=Example(kwargs={"channels": 7, "kernel_size": 5}, batch=3, space=(6, 11)),
)
class CBAMSpatial(SpatialGate):
    """CBAM's spatial attention on images: y = x * sigmoid(norm(f * [mean_c x, max_c x])).

    Args:
        channels: number of channels.
        kernel_size: taps per side of the convolution f, odd.
        norm: a batch norm on the scores, as in the authors' code; False = as in the equation.

    Raises:
        ValueError: an even kernel size, or one that is not positive.

    Cost: 2 k^2 parameters, and as many MACs per position.
    """

    dimensions = 2

    def __init__(self, channels: int, *, kernel_size: int = 7, norm: bool = True) -> None:
        super().__init__(channels, kernel_size=kernel_size, norm=norm)


@register(
    name="cbam_spatial_3d",
    system="medusa",
    paper=PAPER,
    traits=Traits.of_feature_mixer(spatial_dims=(3,)),
    example=Example(kwargs={"channels": 7, "kernel_size": 3}, batch=3, space=(5, 6, 3)),
)
class CBAMSpatial3d(SpatialGate):
    """CBAM's spatial attention on volumes: y = x * sigmoid(norm(f * [mean_c x, max_c x])).

    Args:
        channels: number of channels.
        kernel_size: taps per side of the convolution f, odd.
        norm: a batch norm on the scores, as in the authors' code; False = as in the equation.

    Raises:
        ValueError: an even kernel size, or one that is not positive.

    Cost: 2 k^3 parameters, and as many MACs per position.
    """

    dimensions = 3

    def __init__(self, channels: int, *, kernel_size: int = 7, norm: bool = True) -> None:
        super().__init__(channels, kernel_size=kernel_size, norm=norm)
