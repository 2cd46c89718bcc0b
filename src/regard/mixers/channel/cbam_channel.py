"""CBAM's attention on channels: a gate from the mean and the maximum of every channel.

Paper: "CBAM: Convolutional Block Attention Module", Woo et al., ECCV 2018, https://arxiv.org/abs/1807.06521, section 3
and equation 2. The tumour network of "Enhancing Brain Tumor Segmentation Using Channel Attention and Transfer
learning", Behzadpour et al., 2025, https://arxiv.org/abs/2501.11196, has it on every skip.
Compared with timm's `timm/layers/cbam.py:ChannelAttn` and with an independent evaluation in float64.
Different from the paper's formula: no biases unless they are asked for, and an inner width of at least 4, so that
narrow maps keep a gate worth having.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.channel_gate import TRAITS
from regard.layers.reference_names import rename_all
from regard.metadata import Example, Paper
from regard.ops.cbam import channel_maxima, two_branch_scores
from regard.ops.channel_gates import channel_means, gate_of, scale_channels
from regard.registry import register

SMALLEST_HIDDEN = 4
CBAM_PAPER = Paper(
    title="CBAM: Convolutional Block Attention Module",
    authors="Woo et al.",
    venue="ECCV",
    year=2018,
    url="https://arxiv.org/abs/1807.06521",
    where="section 3 and equation 2",
)
REFERENCE_NAMES = ((r"^(mlp\.0|mlp\.1|fc1)\.", "down_proj."), (r"^(mlp\.2|mlp\.3|fc2)\.", "up_proj."))
"""Layers of the small network where it is a sequence, with or without a first layer that flattens, and in timm."""


@register(
    name="cbam_channel",
    system="braintumor",
    paper=CBAM_PAPER,
    traits=TRAITS,
    example=Example(kwargs={"channels": 14, "reduction": 3}, batch=3, space=(5, 7, 3)),
)
class CBAMChannel(FeatureMixer):
    """y = x * sigmoid(W2 relu(W1 a) + W2 relu(W1 m)), where a and m are mean and maximum of x over all positions.

    Args:
        channels: number of channels, C.
        reduction: the inner width is C / reduction, rounded down, and at least 4.
        hidden: the inner width itself, whatever the reduction; None = as the reduction says.
        bias: biases in both layers.

    Raises:
        ValueError: a reduction or an inner width that is not positive.

    Cost: 2 C^2 / reduction parameters (without biases); three halves as many MACs per image, besides two passes that
    pool and one that scales.
    """

    def __init__(self, channels: int, *, reduction: int = 16, hidden: int | None = None, bias: bool = False) -> None:
        super().__init__(channels)
        hidden = cbam_hidden(channels, reduction) if hidden is None else hidden
        if hidden < 1:
            raise ValueError(f"hidden must be positive, got {hidden}")
        self.down_proj = nn.Linear(channels, hidden, bias=bias)
        self.up_proj = nn.Linear(hidden, channels, bias=bias)

    def mix(self, x: Tensor, *, context: Tensor | None) -> Float[Tensor, "batch channels *space"]:
        """The input times the gate."""
        return scale_channels(x, self.scores(x))

    def scores(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels"]:
        """A number per channel, whose sigmoid is the gate."""
        down, up = self.down_proj, self.up_proj
        return two_branch_scores(channel_means(x), channel_maxima(x), down.weight, up.weight, down.bias, up.bias)

    def gate(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *ones"]:
        """The factor on each channel of `x`, between 0 and 1, with axes of length 1 for the positions.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        return gate_of(x, self.scores(x))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load `mlp.0` and `mlp.2`, as linear maps or 1x1 convolutions, `mlp.1` and `mlp.3`, or timm's `fc1` and `fc2`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        renamed = rename_all(state_dict, REFERENCE_NAMES)
        load_strictly(self, {name: _without_ones(tensor) for name, tensor in renamed.items()})

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """The inner matrix twice, the outer one once."""
        hidden = options.hidden or cbam_hidden(options.channels, options.reduction)
        return 3 * batch * options.channels * hidden


def cbam_hidden(channels: int, reduction: int) -> int:
    """The inner width: `channels / reduction`, and at least 4.

    Raises:
        ValueError: a reduction that is not positive.
    """
    if reduction < 1:
        raise ValueError(f"reduction must be positive, got {reduction}")
    return max(SMALLEST_HIDDEN, channels // reduction)


def _without_ones(tensor: Tensor) -> Tensor:
    """The weight of a 1x1 convolution as a matrix; anything else as it is, for the strict loader to judge."""
    return tensor.flatten(1) if tensor.ndim > 2 and tensor[0, 0].numel() == 1 else tensor
