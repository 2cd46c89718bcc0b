"""Cascaded group attention: in windows, every head has its own part of the channels, and hands its output to the next.

Paper: "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", Liu et al., CVPR 2023,
https://arxiv.org/abs/2305.07027, section 3.1.
Compared with microsoft/Cream@4a13c409, `EfficientViT/classification/model/efficientvit.py:CascadedGroupAttention` and
`LocalWindowAttention`.
As there: biases depend on absolute offsets, so that an offset and its opposite share one; maps that the windows do not
fill are padded with zeros at the bottom and at the right, which are attended to and counted by the batch norms; a map
that a window holds is not padded. There the size of the map is fixed; here any map is taken, and one that is smaller
than the window uses the biases of the offsets that it has. The biases are gathered at every call instead of being kept
from one evaluation to the next, so that new weights take effect at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isqrt
from types import SimpleNamespace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from regard.contract import FeatureMixer, load_strictly
from regard.layers.conv_norm import ConvNorm
from regard.layers.reference_names import rename_all
from regard.metadata import Example, No, Paper, Traits
from regard.ops.single_head_attention import single_head_attention, single_head_weights
from regard.ops.windows import (
    Size,
    dense_map,
    merge_windows,
    pad_to_multiple,
    padded_space,
    split_windows,
    window_numbers,
)
from regard.registry import register

EFFICIENTVIT_PAPER = Paper(
    title="EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention",
    authors="Liu et al.",
    venue="CVPR",
    year=2023,
    url="https://arxiv.org/abs/2305.07027",
    code="microsoft/Cream@4a13c4091e78f9abd2160e7e01c02e48c1cf8fb9",
    where="section 3.1",
)
CASCADED_GROUP_NAMES = (
    (r"(^|\.)attn\.", r"\1"),
    (r"(^|\.)dws\.", r"\1query_convs."),
    (r"(^|\.)proj\.1\.", r"\1o_proj."),
    (r"(^|\.)c\.weight$", r"\1conv.weight"),
    (r"(^|\.)bn\.", r"\1norm."),
)
"""Parts of the layer in the authors' layout, and timm's, as ours."""
Maps = Float[Tensor, "batch channels y x"]
Windows = Float[Tensor, "windows channels sy sx"]


@register(
    name="cascaded_group",
    system="efficientvit",
    paper=EFFICIENTVIT_PAPER,
    traits=Traits.of_feature_mixer(
        spatial_dims=(2,),
        has_map=True,
        row_stochastic=No("where the windows do not fill the map, a part of the weight falls on padding"),
    ),
    example=Example(
        kwargs={"channels": 15, "num_heads": 3, "window_size": 4, "head_dim": 6, "kernel_sizes": (5, 3, 1)},
        batch=2,
        space=(6, 9),
    ),
)
class CascadedGroupAttention(FeatureMixer):
    """Y = W relu([F_1, ..., F_h]), F_i = softmax(q_i k_i^T / sqrt(d) + b_i) v_i, where q_i, k_i, v_i are maps of X_i +
    F_{i-1}, X_i being the i-th part of the channels (F_0 = 0), and q_i is convolved depth-wise.

    All maps are 1x1 convolutions with batch norms.

    Args:
        channels: number of channels, C.
        num_heads: number of heads, h; must divide `channels`. Values are C / h wide.
        window_size: positions per side of a window, P.
        head_dim: width of queries and keys, d.
        kernel_sizes: taps per side of the convolution of each head's queries, odd; those beyond the heads are unused.
        cascade: hand outputs on; False leaves h heads that do not depend on each other.

    Raises:
        ValueError: heads that do not divide the channels, fewer kernels than heads, an even kernel, or a size that is
            not positive.

    Cost: N (C (2 d + C / h) + d sum_i k_i^2 + C^2 + P^2 (h d + C)) MACs for N positions of the padded map: the first
    term is h times less than for heads that see all channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        window_size: int = 7,
        head_dim: int = 16,
        kernel_sizes: tuple[int, ...] = (5, 5, 5, 5),
        cascade: bool = True,
    ) -> None:
        super().__init__(channels)
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"num_heads must divide channels={channels}, got {num_heads}")
        if window_size < 1 or head_dim < 1:
            raise ValueError(f"window_size and head_dim must be positive, got {window_size} and {head_dim}")
        if len(kernel_sizes) < num_heads:
            raise ValueError(f"kernel_sizes must have a number for each of {num_heads} heads, got {kernel_sizes}")
        self.num_heads = num_heads
        self.window_size = window_size
        self.head_dim = head_dim
        self.cascade = cascade
        width = channels // num_heads
        self.qkvs = nn.ModuleList(ConvNorm(width, 2 * head_dim + width) for _ in range(num_heads))
        self.query_convs = nn.ModuleList(
            ConvNorm(head_dim, head_dim, kernel_size=size, groups=head_dim) for size in kernel_sizes[:num_heads]
        )
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))
        self.o_proj = ConvNorm(channels, channels, initial_scale=0.0)

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """Window by window; the projection sees padded positions too, as its batch norm must in training."""
        space, size = (x.shape[2], x.shape[3]), self._window(x)
        heads = [mixed for _, mixed in self._heads(_cut(x, size), weighed=False)]
        return _joined(self.o_proj(torch.cat(heads, dim=1).relu_()), size, space)

    def attention_map(self, x: Maps) -> Float[Tensor, "batch heads positions positions"]:
        """The weights of all windows over row-major positions; 0 outside a position's window.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        space, size = (x.shape[2], x.shape[3]), self._window(x)
        weights = torch.stack([weights for weights, _ in self._heads(_cut(x, size), weighed=True)], dim=1)
        return dense_map(weights, window_numbers(space, size, device=x.device), space[0] * space[1])

    def _window(self, x: Maps) -> Size:
        """Rows and columns of a window: the whole map where it is no larger on either axis."""
        height, width = x.shape[2:]
        side = self.window_size
        return (height, width) if height <= side and width <= side else (side, side)

    def _heads(self, x: Windows, *, weighed: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Head by head the weights (empty unless `weighed`) and the output, a map."""
        size, width = (x.shape[2], x.shape[3]), self.channels // self.num_heads
        index = offset_numbers(size, self.window_size, device=x.device)
        biases = self.attention_biases[:, index]
        mixed = None
        for head, (part, qkv) in enumerate(zip(x.split(width, dim=1), self.qkvs, strict=True)):
            maps = qkv(part if mixed is None or not self.cascade else part + mixed)
            q = _tokens(self.query_convs[head](maps[:, : self.head_dim]))
            _, k, v = _tokens(maps).split((self.head_dim, self.head_dim, width), dim=-1)
            weights = single_head_weights(q, k, bias=biases[head]) if weighed else q.new_empty(0)
            mixed = single_head_attention(q, k, v, bias=biases[head]).unflatten(1, size).permute(0, 3, 1, 2)
            yield weights, mixed

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Projections and convolutions of the padded map, and two products per head in windows."""
        channels, heads, width, side = options.channels, options.num_heads, options.head_dim, options.window_size
        height, columns = space
        if max(space) > side:
            height, columns = padded_space((height, columns), (side, side))
        window = min(height, side) * min(columns, side)
        convolutions = width * sum(size**2 for size in options.kernel_sizes[:heads])
        projections = channels * (2 * width + channels // heads) + channels**2
        return batch * height * columns * (projections + convolutions + window * (heads * width + channels))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout, with or without the window around it (`attn`), or timm's.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape, or biases in another order.
        """
        load_strictly(self, fit_biases(rename_all(state_dict, CASCADED_GROUP_NAMES), self.state_dict()))


def offset_numbers(size: Size, side: int, *, device: torch.device | None = None) -> Int[Tensor, "positions positions"]:
    """For every pair of positions of a window the number |dy| * side + |dx| of its offset.

    Args:
        size: rows and columns of the window, at most `side`.
        side: offsets per axis.
        device: where the numbers are to be.
    """
    rows, columns = torch.arange(size[0], device=device), torch.arange(size[1], device=device)
    vertical = (rows[:, None] - rows).abs() * side
    horizontal = (columns[:, None] - columns).abs()
    numbers = vertical[:, None, :, None] + horizontal[None, :, None, :]
    return numbers.reshape(size[0] * size[1], size[0] * size[1])


def fit_biases(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layout without its index buffers, and with biases of another window resized as images are, as timm does.

    Args:
        state_dict: tensors under our names.
        own: ours.

    Raises:
        ValueError: an index that orders the biases otherwise.
    """
    made = {}
    for name, tensor in state_dict.items():
        if name.endswith("attention_bias_idxs"):
            side = isqrt(isqrt(tensor.numel()))
            if not torch.equal(tensor, offset_numbers((side, side), side, device=tensor.device)):
                raise ValueError(f"{name} must number offsets as |dy| * {side} + |dx|, got another order")
        elif name.endswith("attention_biases") and name in own and tensor.ndim == 2:
            made[name] = _resized(tensor, own[name].shape[1])
        else:
            made[name] = tensor
    return made


def _resized(biases: Float[Tensor, "heads offsets"], offsets: int) -> Float[Tensor, "heads wanted"]:
    """Bicubic, with anti-aliasing; a table that is not square is left for the strict loader to name."""
    side, wanted = isqrt(biases.shape[1]), isqrt(offsets)
    if side == wanted or side**2 != biases.shape[1]:
        return biases
    images = biases.float().view(1, -1, side, side)
    resized = interpolate(images, size=(wanted, wanted), mode="bicubic", antialias=True)
    return resized.view(-1, offsets).to(biases.dtype)


def _tokens(maps: Windows) -> Float[Tensor, "windows positions channels"]:
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _cut(x: Maps, size: Size) -> Windows:
    """The windows of a map, their memory ordered with the channels last; the map itself where it is the window."""
    if tuple(x.shape[2:]) == size:
        return x
    rows = pad_to_multiple(x.permute(0, 2, 3, 1), size)
    return split_windows(rows, size).unflatten(1, size).permute(0, 3, 1, 2)


def _joined(windows: Windows, size: Size, space: Size) -> Maps:
    """The map of `space` positions that was cut."""
    if space == size:
        return windows
    rows = merge_windows(_tokens(windows), size, padded_space(space, size))
    return rows[:, : space[0], : space[1]].permute(0, 3, 1, 2)
