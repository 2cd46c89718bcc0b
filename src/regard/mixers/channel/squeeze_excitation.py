"""Squeeze-and-excitation and its variants: the gates on channels that ECA is argued against.

Papers: "Squeeze-and-Excitation Networks", Hu et al., CVPR 2018, https://arxiv.org/abs/1709.01507, equations 2-4 (SE);
"ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", Wang et al., CVPR 2020,
https://arxiv.org/abs/1910.03151, section 3.2 (the variants without reduction).
There is no reference code for the variants; the formulas are restated in the tests.
Not settled by the papers: where matrices start (as `nn.Linear` does; SE-Var2's weights as a matrix with one input), and
the number of groups of SE-GC (the largest common divisor with 16).
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from regard.layers.channel_gate import TRAITS, ChannelGate
from regard.metadata import Example, Paper
from regard.mixers.channel.eca import ECA_PAPER
from regard.ops.channel_gates import dense_scores, grouped_scores
from regard.registry import register

GROUPS = 16
ACTIVATIONS = {"relu": torch.relu, "silu": silu}

_VARIANT_PAPER = replace(ECA_PAPER, code=None, where="section 3.2")
_SPACE = (5, 7, 3)


@register(
    name="se",
    system="eca",
    paper=Paper(
        title="Squeeze-and-Excitation Networks",
        authors="Hu et al.",
        venue="CVPR",
        year=2018,
        url="https://arxiv.org/abs/1709.01507",
        where="equations 2-4",
    ),
    traits=TRAITS,
    example=Example(kwargs={"channels": 14, "reduction": 3}, batch=3, space=_SPACE),
)
class SqueezeExcitation(ChannelGate):
    """Squeeze-and-excitation: two fully connected layers with a narrow one between.

    y = x * sigmoid(W2 relu(W1 g)), where g is the mean of x over all positions.

    Args:
        channels: number of channels, C.
        reduction: the inner width is C / reduction, rounded down, and at least 1.
        bias: biases in both layers.
        hidden: the inner width itself, whatever the reduction; None = as the reduction says.
        activation: "relu", or "silu" as in EfficientNet.

    Raises:
        ValueError: a reduction or an inner width that is not positive, or an unknown activation.

    Cost: 2 C^2 / reduction parameters (without biases) and as many MACs per image.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        bias: bool = False,
        hidden: int | None = None,
        activation: Literal["relu", "silu"] = "relu",
    ) -> None:
        super().__init__(channels)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        hidden = _hidden(channels, reduction, hidden)
        self.activation = activation
        self.down_proj = nn.Linear(channels, hidden, bias=bias)
        self.up_proj = nn.Linear(hidden, channels, bias=bias)

    def scores(self, pooled: Tensor) -> Float[Tensor, "batch channels"]:
        """Squeezed, rectified and widened again."""
        hidden = ACTIVATIONS[self.activation](dense_scores(pooled, self.down_proj.weight, self.down_proj.bias))
        return dense_scores(hidden, self.up_proj.weight, self.up_proj.bias)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Two matrices."""
        return 2 * batch * options.channels * _hidden(options.channels, options.reduction, options.hidden)


@register(
    name="se_var1",
    system="eca",
    paper=_VARIANT_PAPER,
    traits=TRAITS,
    example=Example(kwargs={"channels": 14}, batch=3, space=_SPACE),
)
class SEVar1(ChannelGate):
    """SE-Var1: the pooled channel gates itself, without parameters: y = x * sigmoid(g).

    Args:
        channels: number of channels.

    Cost: no parameters.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def scores(self, pooled: Tensor) -> Float[Tensor, "batch channels"]:
        """The pooled vector itself."""
        return pooled

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """No contraction."""
        return 0


@register(
    name="se_var2",
    system="eca",
    paper=_VARIANT_PAPER,
    traits=TRAITS,
    example=Example(kwargs={"channels": 14}, batch=3, space=_SPACE),
)
class SEVar2(ChannelGate):
    """SE-Var2: a weight per channel, no interaction between channels: y = x * sigmoid(w * g), elementwise.

    Args:
        channels: number of channels, C.

    Cost: C parameters; C multiplications per image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.weight = nn.Parameter(torch.empty(channels).uniform_(-1, 1))

    def scores(self, pooled: Tensor) -> Float[Tensor, "batch channels"]:
        """Channel by channel."""
        return pooled * self.weight.to(pooled.dtype)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """No contraction."""
        return 0


@register(
    name="se_var3",
    system="eca",
    paper=_VARIANT_PAPER,
    traits=TRAITS,
    example=Example(kwargs={"channels": 14}, batch=3, space=_SPACE),
)
class SEVar3(ChannelGate):
    """SE-Var3: one full matrix, without dimensionality reduction: y = x * sigmoid(W g).

    Args:
        channels: number of channels, C.

    Cost: C^2 parameters and MACs per image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.proj = nn.Linear(channels, channels, bias=False)

    def scores(self, pooled: Tensor) -> Float[Tensor, "batch channels"]:
        """All channels from all channels."""
        return dense_scores(pooled, self.proj.weight)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """One matrix."""
        return batch * options.channels**2


@register(
    name="se_gc",
    system="eca",
    paper=_VARIANT_PAPER,
    traits=TRAITS,
    example=Example(kwargs={"channels": 15, "groups": 3}, batch=2, space=_SPACE),
)
class SEGroupConv(ChannelGate):
    """SE-GC: a block-diagonal matrix: y = x * sigmoid(W g), where W has G blocks of C / G channels.

    Args:
        channels: number of channels, C.
        groups: number of blocks, G; must divide `channels`; None = their largest common divisor with 16.

    Raises:
        ValueError: groups that do not divide the channels.

    Cost: C^2 / G parameters and MACs per image.
    """

    def __init__(self, channels: int, *, groups: int | None = None) -> None:
        super().__init__(channels)
        self.groups = _groups(channels, groups)
        width = channels // self.groups
        spread = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(self.groups, width, width).uniform_(-spread, spread))

    def scores(self, pooled: Tensor) -> Float[Tensor, "batch channels"]:
        """Each channel from those of its group."""
        return grouped_scores(pooled, self.weight)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """One matrix per group."""
        return batch * options.channels**2 // _groups(options.channels, options.groups)


def _hidden(channels: int, reduction: int, hidden: int | None = None) -> int:
    if hidden is not None:
        if hidden < 1:
            raise ValueError(f"hidden must be positive, got {hidden}")
        return hidden
    if reduction < 1:
        raise ValueError(f"reduction must be positive, got {reduction}")
    return max(1, channels // reduction)


def _groups(channels: int, groups: int | None) -> int:
    if groups is None:
        return math.gcd(channels, GROUPS)
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the channels, got groups={groups} and channels={channels}")
    return groups
