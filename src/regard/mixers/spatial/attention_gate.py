"""The attention gate of AGUNet: a coefficient for every position of a skip connection, from it and the decoder's map.

Paper: "Meningioma segmentation in T1-weighted MRI leveraging global context and attention mechanisms", Bouget et al.,
Frontiers in Radiology 2021, https://arxiv.org/abs/2101.07715; the idea is that of "Attention U-Net", Oktay et al.,
2018, https://arxiv.org/abs/1804.03999.
Compared with dbouget/mri_brain_tumor_segmentation@7af4e77a, `src/Models/UNet/AttentionGatedUNet.py`.
As there, and unlike Oktay's gate: both maps have the resolution of the skip connection, they are concatenated, not
added, and every 1x1 convolution has a batch norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.any_batch_norm import AnyBatchNorm, convolved
from regard.metadata import Example, Paper, Traits
from regard.registry import register

MENINGIOMA_PAPER = Paper(
    title="Meningioma segmentation in T1-weighted MRI leveraging global context and attention mechanisms",
    authors="Bouget et al.",
    venue="Frontiers in Radiology",
    year=2021,
    url="https://arxiv.org/abs/2101.07715",
    code="dbouget/mri_brain_tumor_segmentation@7af4e77ab80a5a1833c837dbc768de1f08f1f4dc",
    where="the attention gates of AGUNet",
)
Maps = Float[Tensor, "batch channels *space"]


@register(
    name="attention_gate",
    system="meningioma",
    paper=MENINGIOMA_PAPER,
    traits=Traits.of_feature_mixer(spatial_dims=(2, 3), cross=True),
    example=Example(kwargs={"channels": 7}, batch=2, space=(5, 7, 3)),
)
class AttentionGate(FeatureMixer):
    """y = x psi, psi = sigmoid(BN(w relu([BN(W_g g), BN(W_x x)]))): one number per position, for all channels.

    g is the context: what the decoder holds at the resolution of the skip connection x.

    Args:
        channels: number of channels of both maps, C.
        inter_channels: channels of each half of the concatenation, m; None = half of `channels`, at least 1.
        eps: added to the variances of the batch norms.
        momentum: share of a batch in their running statistics.

    Raises:
        ValueError: `inter_channels` that is not positive.

    Cost: N 2 m (C + 1) MACs for N positions.
    """

    def __init__(
        self, channels: int, *, inter_channels: int | None = None, eps: float = 1e-3, momentum: float = 0.01
    ) -> None:
        super().__init__(channels)
        inter = _inter_channels(channels, inter_channels)
        if inter < 1:
            raise ValueError(f"inter_channels must be positive, got {inter}")
        self.context_proj = nn.Linear(channels, inter)
        self.context_norm = AnyBatchNorm(inter, eps=eps, momentum=momentum)
        self.skip_proj = nn.Linear(channels, inter)
        self.skip_norm = AnyBatchNorm(inter, eps=eps, momentum=momentum)
        self.score = nn.Linear(2 * inter, 1)
        self.score_norm = AnyBatchNorm(1, eps=eps, momentum=momentum)

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """The input times the gate."""
        if context is None:
            raise ValueError("the gate needs a context: the decoder's map at the resolution of x, got None")
        return x * self._psi(x, context)

    def gate(self, x: Maps, context: Maps) -> Float[Tensor, "batch 1 *space"]:
        """The factor on each position of `x`, between 0 and 1.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        self._check_features(context, "context")
        return self._psi(x, context)

    def _psi(self, x: Tensor, context: Tensor) -> Tensor:
        if x.shape != context.shape:
            raise ValueError(f"x has shape {tuple(x.shape)} and context {tuple(context.shape)}: they must be equal")
        pairs = ((context, self.context_proj, self.context_norm), (x, self.skip_proj, self.skip_norm))
        halves = [convolved(part, proj.weight, proj.bias, norm=norm).relu() for part, proj, norm in pairs]
        # the convolution of the concatenation as the sum of its halves': maps are not copied
        first, second = self.score.weight.chunk(2, dim=1)
        scores = convolved(halves[0], first, self.score.bias) + convolved(halves[1], second, None)
        return self.score_norm(scores).sigmoid()

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Three 1x1 convolutions."""
        inter = _inter_channels(options.channels, options.inter_channels)
        return batch * math.prod(space) * 2 * inter * (options.channels + 1)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load our own layout: the authors' code has no layer of its own for the gate.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, state_dict)


def _inter_channels(channels: int, inter_channels: int | None) -> int:
    return max(1, channels // 2) if inter_channels is None else inter_channels
