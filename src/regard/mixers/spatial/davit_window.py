"""DaViT's spatial attention: softmax attention inside windows that do not overlap.

Paper: "DaViT: Dual Attention Vision Transformers", Ding et al., ECCV 2022,
https://arxiv.org/abs/2204.03645, equation 3.
Compared with dingmyu/davit@fc79470d, `timm/models/davit.py:WindowAttention` and `SpatialBlock`.
As there: no position bias, no shift, and no mask. Maps that the windows do not fill are padded with zeros at the bottom
and at the right before the projection, so that padding is attended to, with the projection's bias as key and value.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.reference_names import rename_all
from regard.metadata import Example, No, Paper, Traits
from regard.ops.windows import (
    attend_in_windows,
    dense_map,
    pad_to_multiple,
    padded_space,
    window_numbers,
    window_weights,
)
from regard.registry import register

DAVIT_PAPER = Paper(
    title="DaViT: Dual Attention Vision Transformers",
    authors="Ding et al.",
    venue="ECCV",
    year=2022,
    url="https://arxiv.org/abs/2204.03645",
    code="dingmyu/davit@fc79470d99babab23e45e0087790fa23cfd10a02",
    where="equation 3",
)
Maps = Float[Tensor, "batch channels y x"]


@register(
    name="davit_window",
    system="davit",
    paper=DAVIT_PAPER,
    traits=Traits.of_feature_mixer(
        spatial_dims=(2,),
        has_map=True,
        row_stochastic=No("where the windows do not fill the map, a part of the weight falls on padding"),
    ),
    example=Example(kwargs={"channels": 15, "num_heads": 3, "window_size": 4}, batch=2, space=(6, 9)),
)
class DaViTWindowAttention(FeatureMixer):
    """Attention inside windows: y = W_o concat_h softmax(Q_h K_h^T / sqrt(d)) V_h, window by window.

    Args:
        channels: number of channels, C.
        num_heads: number of heads; must divide `channels`.
        window_size: positions per side of a window, P.
        qkv_bias: biases in the projections of queries, keys and values.

    Raises:
        ValueError: heads that do not divide the channels, or a window that is not positive.

    Cost: 4 N C^2 + 2 N P^2 C MACs for N positions.
    """

    def __init__(self, channels: int, *, num_heads: int, window_size: int = 7, qkv_bias: bool = True) -> None:
        super().__init__(channels)
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"num_heads must divide channels={channels}, got {num_heads}")
        if window_size < 1:
            raise ValueError(f"window_size must be positive, got {window_size}")
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.o_proj = nn.Linear(channels, channels)

    def mix(self, x: Maps, *, context: Maps | None) -> Maps:
        """Windows of the padded map, cropped."""
        height, width = x.shape[2:]
        size = (self.window_size, self.window_size)
        mixed = attend_in_windows(self._project(x), size, num_heads=self.num_heads)
        return self.o_proj(mixed[:, :height, :width]).permute(0, 3, 1, 2)

    def attention_map(self, x: Maps) -> Float[Tensor, "batch heads positions positions"]:
        """The weights of all windows over row-major positions; 0 outside a position's window.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        size, space = (self.window_size, self.window_size), (x.shape[2], x.shape[3])
        weights = window_weights(self._project(x), size, num_heads=self.num_heads)
        return dense_map(weights, window_numbers(space, size, device=x.device), space[0] * space[1])

    def _project(self, x: Maps) -> Float[Tensor, "batch full_y full_x three_channels"]:
        return self.qkv(pad_to_multiple(x.permute(0, 2, 3, 1), (self.window_size, self.window_size)))

    def inert_parameters(self) -> set[str]:
        """None: padding makes the keys' bias matter, and without padding its gradient is zero by theory."""
        return set()

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Projections of the padded map into three, products in windows, output projection of the map."""
        channels, positions = options.channels, batch * space[0] * space[1]
        height, width = padded_space((space[0], space[1]), (options.window_size, options.window_size))
        padded = batch * height * width
        return padded * (3 * channels**2 + 2 * options.window_size**2 * channels) + positions * channels**2

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `qkv`, `proj`.

        Raises:
            KeyError: an unknown or a missing key, named.
        """
        load_strictly(self, rename_all(state_dict, ((r"^proj\.", "o_proj."),)))
