"""Halo attention: local attention whose blocks of queries share one enlarged neighbourhood of keys.

Paper: "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", Vaswani et al., CVPR 2021,
https://arxiv.org/abs/2103.12731, blocked local attention with haloing (figure 1).
The authors published no code. Compared with huggingface/pytorch-image-models@v1.0.31,
`timm/layers/halo_attn.py:HaloAttn`; what differs is said in `regard.layers.halo_attention`, which is the same with an
output of another size. Maps that the blocks do not fill are filled with zeros below and at the right and cropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor

from regard.contract import FeatureMixer, load_strictly
from regard.layers.halo_attention import HALO_NAMES, HaloAttention, as_matrices
from regard.layers.reference_names import rename_all
from regard.metadata import Example, No, Paper, Traits
from regard.ops.halo import dense_halo_map, halo_weights
from regard.registry import register

HALONET_PAPER = Paper(
    title="Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
    authors="Vaswani et al.",
    venue="CVPR",
    year=2021,
    url="https://arxiv.org/abs/2103.12731",
    code="huggingface/pytorch-image-models@v1.0.31",
    where="blocked local attention with haloing, figure 1",
)
Maps = Float[Tensor, "batch channels y x"]


@register(
    name="halo",
    system="halonet",
    paper=HALONET_PAPER,
    traits=Traits.of_feature_mixer(
        spatial_dims=(2,),
        has_map=True,
        row_stochastic=No("keys beyond the map are zero vectors without a mask, on which a part of the weight falls"),
    ),
    example=Example(
        kwargs={"channels": 15, "num_heads": 3, "head_dim": 2, "block_size": 4, "halo_size": 3}, batch=2, space=(6, 9)
    ),
)
class HaloMixer(FeatureMixer):
    """Blocked local attention with a halo: y = concat_h softmax(Q_h K_h^T / sqrt(d) + r(Q_h)) V_h, block by block.

    r(q) = q . R_rows[Y - y + w - 1] + q . R_columns[X - x + w - 1] for a query at (y, x) of its block and a key at
    (Y, X) of the block's window, w = b + 2 halo_size. A block of one position is local attention pixel by pixel, no
    halo is attention inside blocks, and a block as large as the map is global attention.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        head_dim: width of a query and of a key, d; None = that of a value, `channels // num_heads`.
        block_size: positions per side of a block, b.
        halo_size: positions by which the window of keys extends the block in each direction.
        qkv_bias: biases in the projections of queries, keys and values.
        scale_pos_embed: divide the relative logits r by sqrt(d) too.

    Raises:
        ValueError: heads that do not divide the channels, a negative halo, or a size that is not positive.

    Cost: N C (2 h d + C) + N w^2 (h d + C) + 2 N h d (w + b - 1) MACs for N positions: linear in N.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        head_dim: int | None = None,
        block_size: int = 8,
        halo_size: int = 3,
        qkv_bias: bool = False,
        scale_pos_embed: bool = False,
    ) -> None:
        super().__init__(channels)
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"num_heads must divide channels={channels}, got {num_heads}")
        self.attention = HaloAttention(
            channels,
            num_heads=num_heads,
            head_dim=head_dim,
            block_size=block_size,
            halo_size=halo_size,
            qkv_bias=qkv_bias,
            scale_pos_embed=scale_pos_embed,
        )

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """The layer with stride 1."""
        return self.attention(x)

    def attention_map(self, x: Maps) -> Float[Tensor, "batch heads positions positions"]:
        """The weights over row-major positions; 0 outside a block's window, and without what falls beyond the map.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        layer = self.attention
        weights = halo_weights(
            *layer.project(x),
            layer.row_table,
            layer.column_table,
            num_heads=layer.num_heads,
            block_size=layer.block_size,
            halo_size=layer.halo_size,
            scale_pos_embed=layer.scale_pos_embed,
        )
        space = (x.shape[2], x.shape[3])
        return dense_halo_map(weights, space, block_size=layer.block_size, halo_size=layer.halo_size)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Projections of the map; relative logits and both products of all its blocks."""
        channels, heads, side = options.channels, options.num_heads, options.block_size
        head_dim = channels // heads if options.head_dim is None else options.head_dim
        window = side + 2 * options.halo_size
        projections = batch * space[0] * space[1] * channels * (2 * heads * head_dim + channels)
        queries = batch * -(-space[0] // side) * -(-space[1] // side) * side**2
        relative = 2 * heads * head_dim * (window + side - 1)
        return projections + queries * (relative + window**2 * (heads * head_dim + channels))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load timm's layout: `q`, `kv`, and `pos_embed` with `height_rel` and `width_rel`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, as_matrices(self, rename_all(state_dict, (*HALO_NAMES, (r"^", "attention.")))))
