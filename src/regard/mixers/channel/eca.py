"""ECA: a gate on channels from one short stencil along the pooled channel vector, without dimensionality reduction.

Paper: "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", Wang et al., CVPR 2020,
https://arxiv.org/abs/1910.03151, equations 7, 8 (the stencil) and 12 (its size).
Compared with BangguWu/ECANet@b332f6b3, `models/eca_module.py`.
Different from the code: the size is adaptive by default, as in the paper (the released networks set it by hand, stage
by stage: see `regard.models.vision.eca_resnet`); pooling and stencil are computed in at least float32; any number of
spatial dimensions from one to three. Like the code, and unlike timm's `CecaModule`, zeros are padded at both ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.channel_gate import TRAITS, ChannelGate, taps_of_conv
from regard.metadata import Example, Paper
from regard.ops.channel_gates import adaptive_kernel_size, check_kernel_size, shared_stencil
from regard.registry import register

ECA_PAPER = Paper(
    title="ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
    authors="Wang et al.",
    venue="CVPR",
    year=2020,
    url="https://arxiv.org/abs/1910.03151",
    code="BangguWu/ECANet@b332f6b3",
    where="equations 7, 8 and 12",
)


@register(
    name="eca",
    system="eca",
    paper=ECA_PAPER,
    traits=TRAITS,
    example=Example(kwargs={"channels": 14}, batch=3, space=(5, 7, 3)),
)
class ECA(ChannelGate):
    """Efficient channel attention: one stencil of k taps, shared by all channels.

    y = x * sigmoid(s), s_c = sum_j w_j g_{c + j - (k - 1) / 2} with zeros beyond both ends, where g is the mean of x
    over all positions.

    Args:
        channels: number of channels, C.
        kernel_size: number of taps, k, odd; None = `int(|(log2(C) + b) / gamma|)`, made odd.
        gamma: slope of the adaptive size.
        b: offset of the adaptive size.

    Raises:
        ValueError: an even kernel size, or one above 2 C - 1.

    Cost: k parameters; C k MACs per image, besides one pass that sums and one that scales.
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None, gamma: float = 2.0, b: float = 1.0) -> None:
        super().__init__(channels)
        self.kernel_size = _kernel_size(channels, kernel_size, gamma, b)
        # the spread of a convolution with one input channel
        spread = 1 / math.sqrt(self.kernel_size)
        self.taps = nn.Parameter(torch.empty(self.kernel_size).uniform_(-spread, spread))

    def scores(self, pooled: Tensor) -> Float[Tensor, "batch channels"]:
        """The stencil along the channels."""
        return shared_stencil(pooled, self.taps)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `conv.weight`, of shape (1, 1, kernel_size).

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
        """The stencil; pooling and scaling are no contractions."""
        size = _kernel_size(options.channels, options.kernel_size, options.gamma, options.b)
        return batch * options.channels * size

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"channels={self.channels}, kernel_size={self.kernel_size}"


def _kernel_size(channels: int, kernel_size: int | None, gamma: float, b: float) -> int:
    size = adaptive_kernel_size(channels, gamma=gamma, b=b) if kernel_size is None else kernel_size
    check_kernel_size(size, channels)
    return size
