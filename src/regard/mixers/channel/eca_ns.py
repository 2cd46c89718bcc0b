"""ECA-NS: local interaction of channels like ECA, but every channel has taps of its own.

Paper: "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", Wang et al., CVPR 2020,
https://arxiv.org/abs/1910.03151, equations 5 and 6.
Compared with BangguWu/ECANet@b332f6b3, `models/eca_ns.py`.
Different from the code: the number of taps is adaptive by default; pooling and stencils are computed in at least
float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.channel_gate import TRAITS, ChannelGate, taps_of_conv
from regard.metadata import Example
from regard.mixers.channel.eca import ECA_PAPER
from regard.ops.channel_gates import adaptive_kernel_size, check_kernel_size, unshared_stencil
from regard.registry import register


@register(
    name="eca_ns",
    system="eca",
    paper=replace(ECA_PAPER, where="equations 5 and 6"),
    traits=TRAITS,
    example=Example(kwargs={"channels": 14, "kernel_size": 5}, batch=3, space=(5, 7, 3)),
)
class ECANS(ChannelGate):
    """Channel attention with local interaction, not shared: k taps for each channel.

    y = x * sigmoid(s), s_c = sum_j w_{c, j} g_{c + j - (k - 1) / 2} with zeros beyond both ends, where g is the mean of
    x over all positions.

    Args:
        channels: number of channels, C.
        kernel_size: number of taps per channel, k, odd; None = the adaptive size of ECA.

    Raises:
        ValueError: an even kernel size, or one above 2 C - 1.

    Cost: C k parameters; C k MACs per image, besides one pass that sums and one that scales.
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None) -> None:
        super().__init__(channels)
        self.kernel_size = adaptive_kernel_size(channels) if kernel_size is None else kernel_size
        check_kernel_size(self.kernel_size, channels)
        # the spread of a convolution with one input channel per group
        spread = 1 / math.sqrt(self.kernel_size)
        self.taps = nn.Parameter(torch.empty(channels, self.kernel_size).uniform_(-spread, spread))

    def scores(self, pooled: Tensor) -> Float[Tensor, "batch channels"]:
        """Each channel's own stencil."""
        return unshared_stencil(pooled, self.taps)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `conv.weight`, of shape (channels, 1, kernel_size).

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: the weight has another shape.
        """
        renamed = {
            "taps" if name == "conv.weight" else name: taps_of_conv(tensor, like=self.taps)
            for name, tensor in state_dict.items()
        }
        load_strictly(self, renamed)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """The stencils; pooling and scaling are no contractions."""
        size = adaptive_kernel_size(options.channels) if options.kernel_size is None else options.kernel_size
        return batch * options.channels * size

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"channels={self.channels}, kernel_size={self.kernel_size}"
