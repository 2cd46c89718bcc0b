"""BiFormer's bi-level routing attention: regions choose regions, positions attend inside the chosen ones.

Paper: "BiFormer: Vision Transformer with Bi-Level Routing Attention", Zhu et al., CVPR 2023,
https://arxiv.org/abs/2303.08810, section 3.2.
Compared with rayleizhu/BiFormer@1697bbbe, `ops/bra_legacy.py:BiLevelRoutingAttention`, of which the published weights
are, and `ops/bra_nchw.py:nchwBRA`, its refactoring, which differs where regions do not fill the map (`padding`).
As there: routing and attention share the scale 1 / sqrt(qk_dim), the whole width and not a head's, and positions come
from a depth-wise convolution of the values (LePE).
Different: of equal affinities the first region is chosen; regions are averaged and compared in at least float32, also
where the projections are narrower; a map with fewer regions than `topk` attends to all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from regard.contract import FeatureMixer, load_strictly
from regard.layers.reference_names import rename_all
from regard.layers.wide_precision import wide_linear
from regard.metadata import Example, No, Paper, Traits
from regard.ops.bilevel_routing import Routing, is_dense, route, routed_attention, routed_weights
from regard.ops.precision import compute_dtype
from regard.ops.regions import (
    DOWNSAMPLINGS,
    Downsampling,
    RegionGrid,
    grid_of_count,
    grid_of_size,
    merge_regions,
    pool_regions,
    pooled_positions,
    region_means,
    region_numbers,
    split_regions,
)
from regard.ops.windows import dense_map
from regard.registry import register

BIFORMER_PAPER = Paper(
    title="BiFormer: Vision Transformer with Bi-Level Routing Attention",
    authors="Zhu et al.",
    venue="CVPR",
    year=2023,
    url="https://arxiv.org/abs/2303.08810",
    code="rayleizhu/BiFormer@1697bbbeafb8680524898f1dcaac10defd0604be",
    where="section 3.2",
)
Padding = Literal["before_projection", "after_projection", "none"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)
ROUTING_NAMES = (
    (r"(^|\.)qkv\.qkv\.", r"\1qkv."),
    (r"(^|\.)qkv_linear\.", r"\1qkv."),
    (r"(^|\.)(?:wo|output_linear)\.", r"\1o_proj."),
    (r"(^|\.)router\.emb\.", r"\1routing_proj."),
)
"""Parts of both of the authors' layers as ours."""
Maps = Float[Tensor, "batch channels y x"]


@register(
    name="bilevel_routing",
    system="biformer",
    paper=BIFORMER_PAPER,
    traits=Traits.of_feature_mixer(
        spatial_dims=(2,),
        has_map=True,
        row_stochastic=No("where the regions do not fill the map, a part of the weight falls on padding"),
        time="n^2",
    ),
    example=Example(
        kwargs={"channels": 18, "num_heads": 3, "regions_per_side": 3, "topk": 4, "qk_dim": 12}, batch=2, space=(7, 10)
    ),
)
class BiLevelRoutingAttention(FeatureMixer):
    """Attention inside the chosen regions: O = W_o (concat_h softmax(s Q_h K_h[I]^T) V_h[I] + LePE(V)).

    I = the k largest of A_r = s Q_r K_r^T in each row, where Q_r and K_r are the regions' means of Q and K; no gradient
    goes through the choice. A map is cut into S x S regions, whatever its size.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels` and `qk_dim`.
        regions_per_side: regions per side of the map, S.
        topk: regions that a region attends to, k; at most S^2.
        qk_dim: width of all queries, and of all keys; None = `channels`.
        qk_scale: the factor s in routing and attention; None = 1 / sqrt(qk_dim).
        lepe_kernel_size: taps per side of the convolution of the values, odd; 0 = none.
        param_routing: a linear map of both means before they are compared; needs `diff_routing`.
        diff_routing: let gradients through the affinities, which reach the result by `soft_routing` alone.
        soft_routing: multiply the keys and values of a chosen region by the softmax of the chosen affinities.
        kv_downsample_mode: how the keys and values of a region become fewer: "identity" = not at all, "ada_avgpool",
            "ada_maxpool", "avgpool", "maxpool".
        kv_per_region: keys per side of a region that adaptive pooling leaves.
        kv_downsample_ratio: positions per side that "avgpool" and "maxpool" make one key.
        padding: of maps that S does not divide. "before_projection": padding holds the projection's bias, is averaged,
            chosen and attended to. "after_projection": regions of a S-th of the map, rounded down, and as many as
            cover it; padding is zero after the projection, and no part of the means. "none": refuse them.

    Raises:
        ValueError: a size or option that does not fit, as said above; a map that S does not divide, without padding.

    Cost: N C (2 D + C) + S^4 D + N k (N / S^2) (D + C) + N C^2 MACs for N positions and D = qk_dim; with
    S^6 = k N^2 / 2 it grows as N^(4/3). On small maps of which half is chosen or more, the rest is masked, not
    left out.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        regions_per_side: int = 7,
        topk: int = 4,
        qk_dim: int | None = None,
        qk_scale: float | None = None,
        lepe_kernel_size: int = 5,
        param_routing: bool = False,
        diff_routing: bool = False,
        soft_routing: bool = False,
        kv_downsample_mode: Downsampling = "identity",
        kv_per_region: int = 4,
        kv_downsample_ratio: int = 4,
        padding: Padding = "before_projection",
    ) -> None:
        super().__init__(channels)
        qk_dim = channels if qk_dim is None else qk_dim
        _check_sizes(channels, qk_dim, num_heads, regions_per_side, topk, lepe_kernel_size)
        _check_routing(param_routing, diff_routing, soft_routing)
        _check_downsampling(kv_downsample_mode, kv_per_region, kv_downsample_ratio)
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {padding!r}")
        self.num_heads = num_heads
        self.regions_per_side = regions_per_side
        self.topk = topk
        self.qk_dim = qk_dim
        self.scale = qk_dim**-0.5 if qk_scale is None else qk_scale
        self.diff_routing, self.soft_routing = diff_routing, soft_routing
        self.kv_downsample_mode: Downsampling = kv_downsample_mode
        self.kv_per_region, self.kv_downsample_ratio = kv_per_region, kv_downsample_ratio
        self.padding: Padding = padding
        self.qkv = nn.Linear(channels, 2 * qk_dim + channels)
        self.routing_proj = nn.Linear(qk_dim, qk_dim) if param_routing else None
        taps = lepe_kernel_size
        self.lepe = nn.Conv2d(channels, channels, taps, padding=taps // 2, groups=channels) if taps else None
        self.o_proj = nn.Linear(channels, channels)

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """Regions of the padded map, attention, LePE, and the projection of what is cropped."""
        height, width = x.shape[2:]
        grid, tokens, real = self._cut(x)
        q, kv = self._project(tokens, real)
        routing = self._routing(tokens, q, kv, real) if self._chooses(grid) else None
        mixed = routed_attention(
            q,
            self._pooled(kv, grid),
            None if routing is None else routing.index,
            num_heads=self.num_heads,
            scale=self.scale,
            weights=routing.weights if routing is not None and self.soft_routing else None,
        )
        merged = merge_regions(mixed, grid)
        if self.lepe is not None:
            values = merge_regions(kv[..., self.qk_dim :], grid).permute(0, 3, 1, 2)
            merged = merged + self.lepe(values).permute(0, 2, 3, 1)
        return self.o_proj(merged[:, :height, :width]).permute(0, 3, 1, 2)

    def route(self, x: Maps) -> Routing:
        """Which regions every region attends to, best first, and the softmax of their affinities; row-major numbers.

        Raises:
            ValueError: a number of dimensions or channels, or a size, that does not fit.
        """
        self._check_features(x, "x")
        _, tokens, real = self._cut(x)
        return self._routing(tokens, *self._project(tokens, real), real)

    def attention_map(self, x: Maps) -> Float[Tensor, "batch heads positions positions"]:
        """What weighs the values, over row-major positions: 0 outside the chosen regions; without LePE.

        Raises:
            ValueError: a number of dimensions or channels, or a size, that does not fit; pooled keys.
        """
        self._check_features(x, "x")
        if self.kv_downsample_mode != "identity":
            raise ValueError(f"kv_downsample_mode={self.kv_downsample_mode!r} has no map over positions")
        grid, tokens, real = self._cut(x)
        q, kv = self._project(tokens, real)
        chosen = self._routing(tokens, q, kv, real)
        factors, index = chosen.weights, chosen.index
        soft = factors if self.soft_routing else None
        shares = routed_weights(q, kv, index, num_heads=self.num_heads, scale=self.scale, weights=soft)
        shares = shares.unflatten(-1, (index.shape[-1], -1)).permute(0, 2, 1, 3, 4, 5)
        if soft is not None:
            # the values are multiplied by them too
            shares = shares * soft[:, None, :, None, :, None].to(shares.dtype)
        whole = shares.new_zeros(*shares.shape[:4], grid.regions, grid.positions)
        whole = whole.scatter(4, index[:, None, :, None, :, None].expand_as(shares), shares)
        numbers = region_numbers((x.shape[2], x.shape[3]), grid, device=x.device).view(1, -1)
        return dense_map(whole.flatten(4, 5).flatten(2, 3), numbers, x.shape[2] * x.shape[3])

    # -- parts

    def _cut(self, x: Tensor) -> tuple[RegionGrid, Tensor, Tensor | None]:
        """The regions of the padded map, and which of their positions are real where that matters."""
        space = (x.shape[2], x.shape[3])
        grid = _grid(space, self.regions_per_side, self.padding)
        if self.padding == "none" and grid.space != space:
            raise ValueError(
                f"regions_per_side={self.regions_per_side} must divide a map of {space[0]} x {space[1]} positions "
                "without padding"
            )
        real = None
        if self.padding == "after_projection" and grid.space != space:
            real = region_numbers(space, grid, device=x.device) >= 0
        return grid, split_regions(x.permute(0, 2, 3, 1), grid), real

    def _project(self, tokens: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries, and keys with values; two products, so that each is a block of memory of its own."""
        weight, bias, width = self.qkv.weight, self.qkv.bias, self.qk_dim
        q, kv = linear(tokens, weight[:width], bias[:width]), linear(tokens, weight[width:], bias[width:])
        return (q, kv) if real is None else (q * real[..., None], kv * real[..., None])

    def _chooses(self, grid: RegionGrid) -> bool:
        return self.soft_routing or self.topk < grid.regions

    def _routing(self, tokens: Tensor, q: Tensor, kv: Tensor, real: Tensor | None) -> Routing:
        if q.dtype == compute_dtype(q):
            means = [region_means(each, real) for each in (q, kv[..., : self.qk_dim])]
        else:
            # the projection of the mean is the mean of the projections, which are rounded
            projected = wide_linear(region_means(tokens, real), self.qkv)
            means = list(projected[..., : 2 * self.qk_dim].chunk(2, dim=-1))
        if not self.diff_routing:
            means = [each.detach() for each in means]
        if self.routing_proj is not None:
            means = [wide_linear(each, self.routing_proj) for each in means]
        return route(*means, topk=min(self.topk, q.shape[1]), scale=self.scale)

    def _pooled(self, kv: Tensor, grid: RegionGrid) -> Tensor:
        return pool_regions(
            kv,
            grid.size,
            mode=self.kv_downsample_mode,
            per_side=self.kv_per_region,
            ratio=self.kv_downsample_ratio,
        )

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Projections, LePE and products of the padded map, affinities where there is a choice, output projection."""
        channels = options.channels
        width = channels if options.qk_dim is None else options.qk_dim
        grid = _grid((space[0], space[1]), options.regions_per_side, options.padding)
        topk = min(options.topk, grid.regions)
        padded, positions = batch * grid.regions * grid.positions, batch * space[0] * space[1]
        keys = pooled_positions(
            grid.size,
            mode=options.kv_downsample_mode,
            per_side=options.kv_per_region,
            ratio=options.kv_downsample_ratio,
        )
        hides = not options.soft_routing and is_dense(grid.regions, topk, queries=grid.positions, keys=keys)
        macs = padded * (channels * (2 * width + channels) + channels * options.lepe_kernel_size**2)
        macs += padded * (grid.regions if hides else topk) * keys * (width + channels) + positions * channels**2
        if options.soft_routing or topk < grid.regions:
            macs += batch * grid.regions * width * (grid.regions + 2 * width * options.param_routing)
        return macs

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `qkv.qkv`, `lepe`, `wo`, `router.emb`, or the refactoring's with 1x1 convolutions.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, routing_state(state_dict))


def routing_state(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Either of the authors' layouts of the layer as ours; a 1x1 convolution becomes a linear map.

    Raises:
        KeyError: two names become one.
    """
    pointwise = {
        name: tensor.flatten(1) if name.endswith(("qkv_linear.weight", "output_linear.weight")) else tensor
        for name, tensor in state_dict.items()
    }
    return rename_all(pointwise, ROUTING_NAMES)


def _grid(space: tuple[int, int], per_side: int, padding: Padding) -> RegionGrid:
    return grid_of_size(space, per_side) if padding == "after_projection" else grid_of_count(space, per_side)


def _check_sizes(channels: int, qk_dim: int, num_heads: int, per_side: int, topk: int, taps: int) -> None:
    if num_heads < 1 or channels % num_heads or qk_dim < 1 or qk_dim % num_heads:
        raise ValueError(f"num_heads must divide channels={channels} and qk_dim={qk_dim}, got {num_heads}")
    if per_side < 1:
        raise ValueError(f"regions_per_side must be positive, got {per_side}")
    if not 1 <= topk <= per_side**2:
        raise ValueError(f"topk must be in 1..{per_side**2}, the number of regions, got {topk}")
    if taps < 0 or (taps and taps % 2 == 0):
        raise ValueError(f"lepe_kernel_size must be odd, or 0 for none, got {taps}")


def _check_routing(param: bool, diff: bool, soft: bool) -> None:
    if param and not diff:
        raise ValueError("param_routing needs diff_routing: without it no gradient reaches the routing's own map")
    if diff and not soft:
        raise ValueError("diff_routing needs soft_routing: a hard choice of regions has no gradient")


def _check_downsampling(mode: str, per_region: int, ratio: int) -> None:
    if mode not in DOWNSAMPLINGS:
        raise ValueError(f"kv_downsample_mode must be one of {', '.join(DOWNSAMPLINGS)}, got {mode!r}")
    if per_region < 1 or ratio < 1:
        raise ValueError(
            f"kv_per_region and kv_downsample_ratio must be positive, got kv_per_region={per_region} and "
            f"kv_downsample_ratio={ratio}"
        )
