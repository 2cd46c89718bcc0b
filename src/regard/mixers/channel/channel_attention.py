"""DANet's channel attention: channels are mixed by the softmax of their Gram matrix; no projections.

Paper: "Dual Attention Network for Scene Segmentation", Fu et al., CVPR 2019, https://arxiv.org/abs/1809.02983,
equations 3 and 4; used at the bottleneck of a U-Net in "Meningioma segmentation in T1-weighted MRI leveraging global
context and attention mechanisms", Bouget et al., Frontiers in Radiology 2021, https://arxiv.org/abs/2101.07715.
Compared with dbouget/mri_brain_tumor_segmentation@7af4e77a, `src/Models/UNet/DualAttentionUNet.py:CAM`.
The default is that code: what a channel gives to all channels sums to 1. In DANet's equation what a channel takes of
all does (`normalised_over="inputs"`), and DANet's code weighs by max(G) - G (`max_subtraction=True`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.metadata import Example, No, Traits
from regard.mixers.spatial.position_attention import DANET_PAPER
from regard.ops.dual_attention import Orientation, channel_mixing, channel_weights
from regard.registry import register

Maps = Float[Tensor, "batch channels *space"]

_BETWEEN_CHANNELS = No("weighs channels, not positions: it offers affinity(x)")


@register(
    name="danet_channel",
    system="meningioma",
    paper=replace(DANET_PAPER, where="equations 3 and 4"),
    traits=Traits.of_feature_mixer(spatial_dims=(2, 3), has_map=_BETWEEN_CHANNELS, row_stochastic=_BETWEEN_CHANNELS),
    example=Example(kwargs={"channels": 11}, batch=2, space=(5, 7, 3)),
)
class DANetChannelAttention(FeatureMixer):
    """y = gamma A x + x, with channels as rows, and A from the softmax over the rows of G = x x^T.

    The Gram matrix is a sum over all positions, so that its softmax is nearly one-hot on large maps of large numbers.

    Args:
        channels: number of channels, C.
        max_subtraction: weigh by max(G) - G, the maximum over each row, as DANet's code does.
        normalised_over: "outputs": A = softmax(G)^T, what a channel gives sums to 1; "inputs": A = softmax(G), what a
            channel takes sums to 1.
        init_scale: what gamma starts from; 0 makes the layer the identity.

    Raises:
        ValueError: another `normalised_over`.

    Cost: 2 N C^2 MACs for N positions.
    """

    def __init__(
        self,
        channels: int,
        *,
        max_subtraction: bool = False,
        normalised_over: Orientation = "outputs",
        init_scale: float = 0.0,
    ) -> None:
        super().__init__(channels)
        if normalised_over not in ("outputs", "inputs"):
            raise ValueError(f"normalised_over must be outputs or inputs, got {normalised_over!r}")
        self.max_subtraction = max_subtraction
        self.normalised_over: Orientation = normalised_over
        self.gamma = nn.Parameter(torch.full((1,), float(init_scale)))

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """The mixed channels, scaled, and the map itself."""
        mixed = channel_mixing(x.flatten(2), max_subtraction=self.max_subtraction, normalised_over=self.normalised_over)
        return torch.addcmul(x, mixed.unflatten(2, x.shape[2:]), self.gamma)

    def affinity(self, x: Maps) -> Float[Tensor, "batch channels channels"]:
        """What every channel (row) takes of every other; columns sum to 1, rows with `normalised_over="inputs"`.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        return channel_weights(x.flatten(2), max_subtraction=self.max_subtraction, normalised_over=self.normalised_over)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """The Gram matrix and the mixing."""
        return 2 * batch * math.prod(space) * options.channels**2

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load DANet's layout, which is ours: `gamma`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, state_dict)
