"""MaxViT's attention with relative positions, inside windows or combs of a feature map.

Paper: "MaxViT: Multi-Axis Vision Transformer", Tu et al., ECCV 2022, https://arxiv.org/abs/2204.01697, equation 1 and
section 3.2. Compared with google-research/maxvit@70a47072, `maxvit/models/maxvit.py:Attention`.
The authors refuse maps that windows do not fill. Here such maps are padded at the bottom and at the right, and nothing
attends to the padding: every window, and every comb, holds at least one position of the map. Scores and softmax follow
the precision of the fused kernel (float32 inside), where the authors cast scores to float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from regard.contract import FeatureMixer, load_strictly
from regard.layers.reference_names import rename_all
from regard.layers.tensorflow_names import Place, arranged
from regard.metadata import Paper, Traits
from regard.ops.relative_bias import relative_bias
from regard.ops.windows import Layout, attend_in_windows, dense_map, padded_space, window_numbers, window_weights

MAXVIT_PAPER = Paper(
    title="MaxViT: Multi-Axis Vision Transformer",
    authors="Tu et al.",
    venue="ECCV",
    year=2022,
    url="https://arxiv.org/abs/2204.01697",
    code="google-research/maxvit@70a470723b810f9eb05b2aa935cf75db8290c69e",
    where="equation 1 and section 3.2",
)
TRAITS = Traits.of_feature_mixer(spatial_dims=(2,), has_map=True, row_stochastic=True)
INITIAL_SPREAD = 0.02
"""Standard deviation of all weights, and of the biases of positions, at the start."""
Maps = Float[Tensor, "batch channels y x"]


class RelativeAttention(FeatureMixer):
    """y = W_o concat_h softmax(Q_h K_h^T / sqrt(d) + B_h) V_h in every window; a subclass is final and says which.

    B_h depends on the offset from query to key alone and is shared by all windows.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        size: positions per side of a window, P.
        base_size: positions per side of the windows that the table of biases is made for; None = those of `size`.

    Raises:
        ValueError: heads that do not divide the channels, or a window that is not positive.

    Cost: 4 N C^2 + 2 N P^2 C MACs for N positions.
    """

    layout: ClassVar[Layout]

    def __init__(self, channels: int, *, num_heads: int, size: int, base_size: int | None) -> None:
        super().__init__(channels)
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"num_heads must divide channels={channels}, got {num_heads}")
        if size < 1:
            raise ValueError(f"a window must have a positive size, got {size}")
        if base_size is not None and base_size < 1:
            raise ValueError(f"base_size must be positive, got {base_size}")
        self.num_heads = num_heads
        self.size = size
        offsets = 2 * (size if base_size is None else base_size) - 1
        self.qkv = nn.Linear(channels, 3 * channels)
        self.bias_table = nn.Parameter(torch.empty(num_heads, offsets, offsets))
        self.o_proj = nn.Linear(channels, channels)
        for weight in (self.qkv.weight, self.o_proj.weight, self.bias_table):
            nn.init.normal_(weight, std=INITIAL_SPREAD)
        for bias in (self.qkv.bias, self.o_proj.bias):
            nn.init.zeros_(bias)

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """Windows of the padded map, cropped. Contiguous windows that the map fills go without the padding's masks,
        which took 1.6 times as long for 8 maps of 80 x 80 positions.
        """
        if self.layout != "window":
            return self._attend(x)
        rows, columns = (_whole_and_rest(length, self.size) for length in x.shape[2:])
        parts = [[self._attend(part) for part in strip.split(columns, dim=3)] for strip in x.split(rows, dim=2)]
        joined = [part[0] if len(part) == 1 else torch.cat(part, dim=3) for part in parts]
        return joined[0] if len(joined) == 1 else torch.cat(joined, dim=2)

    def _attend(self, x: Maps) -> Maps:
        height, width = x.shape[2:]
        size = (self.size, self.size)
        mixed = attend_in_windows(
            self._project(x), size, num_heads=self.num_heads, layout=self.layout, bias=self._biases(x)
        )
        return self.o_proj(mixed[:, :height, :width]).permute(0, 3, 1, 2)

    def attention_map(self, x: Maps) -> Float[Tensor, "batch heads positions positions"]:
        """The weights of all windows over row-major positions; 0 outside a position's window.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        size, space = (self.size, self.size), (x.shape[2], x.shape[3])
        weights = window_weights(
            self._project(x), size, num_heads=self.num_heads, layout=self.layout, bias=self._biases(x)
        )
        return dense_map(weights, window_numbers(space, size, layout=self.layout, device=x.device), space[0] * space[1])

    def _project(self, x: Maps) -> Float[Tensor, "batch full_y full_x three_channels"]:
        """Padded after the projection, which then costs nothing there."""
        qkv = self.qkv(x.permute(0, 2, 3, 1))
        height, width = x.shape[2:]
        full_height, full_width = padded_space((height, width), (self.size, self.size))
        if (full_height, full_width) == (height, width):
            return qkv
        return pad(qkv, (0, 0, 0, full_width - width, 0, full_height - height))

    def _biases(self, x: Maps) -> Float[Tensor, "windows heads positions positions"]:
        """Those of positions; where a window has padding, of every window, with -inf at the padding."""
        bias = relative_bias(self.bias_table, self.size)[None]
        size, space = (self.size, self.size), (x.shape[2], x.shape[3])
        if padded_space(space, size) == space:
            return bias
        padding = window_numbers(space, size, layout=self.layout, device=x.device) < 0
        return torch.where(padding[:, None, None], -torch.inf, bias).repeat(x.shape[0], 1, 1, 1)

    @staticmethod
    def macs_in_windows(*, channels: int, size: int, batch: int, space: tuple[int, ...]) -> int:
        """Projections of the map, products in the windows of the padded map."""
        height, width = padded_space((space[0], space[1]), (size, size))
        return batch * (4 * space[0] * space[1] * channels**2 + 2 * height * width * size**2 * channels)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout (`q/weight`, ..., `relative_bias`, below any prefix) or timm's (`qkv`, `proj`).

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        if any("/" in name for name in state_dict):
            load_strictly(self, arranged(state_dict, attention_place, self.state_dict()))
        else:
            load_strictly(self, rename_all(state_dict, TIMM_NAMES))


def _whole_and_rest(length: int, size: int) -> list[int]:
    """How many positions whole windows take, and how many remain; what is 0 is left out."""
    rest = length % size
    return [part for part in (length - rest, rest) if part]


def base_size(size: int, scale_ratio: str | None) -> int | None:
    """The windows that the table of biases is made for, from those of a fine-tuning at a larger size.

    Args:
        size: positions per side of a window.
        scale_ratio: the images' size over that of the training before, such as "384/224"; None = there was none.

    Raises:
        ValueError: no ratio of two positive numbers, or one that gives no whole number of positions.
    """
    if scale_ratio is None:
        return None
    try:
        ratio = Fraction(scale_ratio)
    except (ValueError, ZeroDivisionError):
        ratio = Fraction(0)
    if ratio <= 0:
        raise ValueError(f"scale_ratio must be a ratio of two positive numbers such as '384/224', got {scale_ratio!r}")
    base = size / ratio
    if base.denominator != 1:
        raise ValueError(f"scale_ratio must divide a window of {size} positions evenly, got {scale_ratio!r}")
    return int(base)


ATTENTION_PLACES = {
    **{
        f"{letter}/{leaf}": Place(name=f"qkv.{leaf}", axes=axes, part=part, parts=3)
        for part, letter in enumerate("qkv")
        for leaf, axes in (("weight", (1, 2, 0)), ("bias", (0, 1)))
    },
    "o/weight": Place(name="o_proj.weight", axes=(2, 0, 1)),
    "o/bias": Place(name="o_proj.bias", axes=(0,)),
    "relative_bias": Place(name="bias_table", axes=(0, 1, 2)),
}
"""The authors' variables of a layer, after its name."""
TIMM_NAMES = (
    (r"(^|\.)proj\.", r"\1o_proj."),
    (r"(^|\.)rel_pos\.relative_position_bias_table$", r"\1bias_table"),
)
"""timm's names of a layer as ours."""


def attention_place(name: str) -> Place | None:
    """Where a variable of a layer belongs, whatever precedes it; None for one that is not known."""
    parts = name.split("/")
    return ATTENTION_PLACES.get("/".join(parts[-2:]), ATTENTION_PLACES.get(parts[-1]))
