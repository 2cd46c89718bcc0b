"""DANet's position attention: every position of a map, or of a volume, attends to all others.

Paper: "Dual Attention Network for Scene Segmentation", Fu et al., CVPR 2019, https://arxiv.org/abs/1809.02983,
equations 1 and 2; used at the bottleneck of a U-Net in "Meningioma segmentation in T1-weighted MRI leveraging global
context and attention mechanisms", Bouget et al., Frontiers in Radiology 2021, https://arxiv.org/abs/2101.07715.
Compared with dbouget/mri_brain_tumor_segmentation@7af4e77a, `src/Models/UNet/DualAttentionUNet.py:PAM`.
As there: no scale, no biases, and the softmax runs over the positions of its `b_layer` for each position of its
`c_layer`; so its c is our queries, its b our keys, its d our values. Different: there the three maps are made anew in
every call of the layer, so that they are neither trained nor stored; here they are parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.reference_names import rename_all
from regard.metadata import Example, Paper, Traits
from regard.ops.dual_attention import FEW, attended_width, position_attention, position_weights
from regard.registry import register

DANET_PAPER = Paper(
    title="Dual Attention Network for Scene Segmentation",
    authors="Fu et al.",
    venue="CVPR",
    year=2019,
    url="https://arxiv.org/abs/1809.02983",
    code="dbouget/mri_brain_tumor_segmentation@7af4e77ab80a5a1833c837dbc768de1f08f1f4dc",
    where="equations 1 and 2",
)
DANET_NAMES = (
    (r"^query_conv\.", "q_proj."),
    (r"^key_conv\.", "k_proj."),
    (r"^value_conv\.", "v_proj."),
)
REDUCTION = 8
Maps = Float[Tensor, "batch channels *space"]


@register(
    name="position_attention",
    system="meningioma",
    paper=DANET_PAPER,
    traits=Traits.of_feature_mixer(spatial_dims=(2, 3), has_map=True, row_stochastic=True, time="n^2", memory="n"),
    example=Example(kwargs={"channels": 19, "qkv_bias": True}, batch=2, space=(5, 7, 3)),
)
class PositionAttention(FeatureMixer):
    """y = gamma softmax(Q K^T) V + x, where Q, K and V are 1x1 convolutions of x.

    Args:
        channels: number of channels, C.
        reduction: queries and keys are `channels // reduction` wide.
        qkv_bias: biases in the projections, as in DANet.
        init_scale: what gamma starts from; 0 makes the layer the identity.

    Raises:
        ValueError: fewer channels than `reduction`, or one that is not positive.

    Cost: N C (2 C / 8 + C) + N^2 (C / 8 + C) MACs for N positions; N^2 2 C beyond 256, where memory is linear in N.
    """

    def __init__(
        self, channels: int, *, reduction: int = REDUCTION, qkv_bias: bool = False, init_scale: float = 0.0
    ) -> None:
        super().__init__(channels)
        if reduction < 1 or channels < reduction:
            raise ValueError(
                f"position attention needs at least as many channels as its reduction, which is positive: "
                f"got channels={channels} and reduction={reduction}"
            )
        self.head_dim = channels // reduction
        self.qkv_bias = qkv_bias
        self.q_proj = nn.Linear(channels, self.head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(channels, self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(channels, channels, bias=qkv_bias)
        self.gamma = nn.Parameter(torch.full((1,), float(init_scale)))

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """The attended values, scaled, and the map itself."""
        tokens = x.flatten(2).mT
        mixed = position_attention(self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens))
        return torch.addcmul(x, mixed.mT.unflatten(2, x.shape[2:]), self.gamma)

    def attention_map(self, x: Maps) -> Float[Tensor, "batch 1 positions positions"]:
        """What every position takes of the others, row-major.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        tokens = x.flatten(2).mT
        return position_weights(self.q_proj(tokens), self.k_proj(tokens))[:, None]

    def inert_parameters(self) -> set[str]:
        """A key's bias adds the same to all scores of a query."""
        return {"k_proj.bias"} if self.qkv_bias else set()

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Projections, and two products over all pairs of positions, as wide as the kernel works."""
        positions, channels = math.prod(space), options.channels
        width = channels // options.reduction
        projections = channels * (2 * width + channels)
        products = width + channels if positions <= FEW else 2 * attended_width(width, channels)
        return batch * positions * (projections + positions * products)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load DANet's layout: `query_conv`, `key_conv`, `value_conv` of 1x1 convolutions, and `gamma`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        own, renamed = self.state_dict(), rename_all(state_dict, DANET_NAMES)
        for name, tensor in renamed.items():
            if name in own and tuple(tensor.shape) == (*own[name].shape, *[1] * (tensor.ndim - own[name].ndim)):
                renamed[name] = tensor.reshape(own[name].shape)
        load_strictly(self, renamed)
