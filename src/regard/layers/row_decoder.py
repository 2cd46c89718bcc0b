"""SEA's row decoders: from what a token knows of the attention to K scores for its row of the map.

Paper: "SEA: Sparse Linear Attention with Estimated Attention Mask", Lee et al., ICLR 2024,
https://arxiv.org/abs/2310.01777, section 3.1 (the decoder and its convolutions). Compared with
gmlwns2000/sea-attention@5609413b `src/models/perlin_attention/attention.py` and `modules.py:KeepRes`.
Different from the code: the causal decoder's last convolution runs before its columns are repeated, not after, which
gives the same; and the bidirectional one, given the numbers of real rows, ends at the last real row.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from regard.layers.causal_conv2d import CausalConv2d, convolve
from regard.layers.wide_precision import wide_layer_norm, wide_linear

Encoded = Float[Tensor, "batch heads rows width"]
Scores = Float[Tensor, "batch heads rows columns"]
Maps = Float[Tensor, "batch _channels _rows _width"]


class CausalRowDecoder(nn.Module):
    """K scores from each row and the rows above it.

    Linear to 2 channels of K/4 columns for each head; layer norm; twice a causal 3 x 3 convolution of all heads'
    channels with dilation 2, and ReLU; a pointwise one to a channel for each head; every column repeated 4 times, with
    a column of its bias at each side; averaged down to K columns; layer norm.

    Args:
        num_heads: number of heads.
        in_width: width of what comes in.
        columns: K; a multiple of 4.

    Raises:
        ValueError: a number of columns that does not divide.
    """

    SCALE, CHANNELS = 4, 2

    def __init__(self, num_heads: int, in_width: int, columns: int) -> None:
        super().__init__()
        if columns < 1 or columns % self.SCALE:
            raise ValueError(f"the causal estimate's width must be a multiple of {self.SCALE}, got {columns}")
        inner, channels = columns // self.SCALE, self.CHANNELS * num_heads
        self.num_heads, self.columns = num_heads, columns
        self.expand = nn.Linear(in_width, self.CHANNELS * inner)
        self.first_norm = nn.LayerNorm(inner)
        self.first_conv = CausalConv2d(channels, channels, 3, dilation=2)
        self.second_conv = CausalConv2d(channels, channels, 3, dilation=2)
        self.last_conv = CausalConv2d(channels, num_heads, 1)
        self.last_norm = nn.LayerNorm(columns)

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of each of the two maps of earlier rows that it needs to go on."""
        channels = self.CHANNELS * self.num_heads
        return channels, self.first_conv.reach, self.columns // self.SCALE

    def forward(self, encoded: Encoded) -> Scores:
        """Scores of all rows, in at least float32."""
        return self._finish(self._second(self._first(self._channels(encoded), None), None))

    def step(
        self, encoded: Encoded, memory: tuple[Maps, Maps], counts: Int[Tensor, " batch"]
    ) -> tuple[Scores, tuple[Maps, Maps]]:
        """Scores of the rows that follow those in `memory`, and the memory after them.

        Args:
            encoded: the new rows.
            memory: the last rows before both convolutions.
            counts: how many of the new rows are real, in each row of the batch.
        """
        channels = self._channels(encoded)
        inner = self._first(channels, memory[0])
        after = tuple(_last_rows(old, new, counts) for old, new in zip(memory, (channels, inner), strict=True))
        return self._finish(self._second(inner, memory[1])), (after[0], after[1])

    def _channels(self, encoded: Encoded) -> Maps:
        x = split_channels(wide_linear(encoded, self.expand), self.CHANNELS)
        return wide_layer_norm(x, self.first_norm)

    def _first(self, channels: Maps, before: Maps | None) -> Maps:
        return self.first_conv(channels, before=before).relu()

    def _second(self, inner: Maps, before: Maps | None) -> Maps:
        return self.second_conv(inner, before=before).relu()

    def _finish(self, inner: Maps) -> Scores:
        x = self.last_conv(inner).repeat_interleave(self.SCALE, dim=3)
        assert self.last_conv.bias is not None
        side = self.last_conv.bias.to(x.dtype)[:, None, None].expand(x.shape[0], -1, x.shape[2], 1)
        x = adaptive_avg_pool2d(torch.cat((side, x, side), dim=3), (x.shape[2], self.columns))
        return wide_layer_norm(x, self.last_norm)


class RowDecoder(nn.Module):
    """K scores from each row and the rows around it.

    Linear to 4 channels of K/2 columns for each head; 3 x 3 convolutions of all heads' channels: one that takes every
    other row, and ReLU; one more, and ReLU; every row repeated; one to a channel for each head; stretched to as many
    rows as came in and K columns, bilinearly.

    Args:
        num_heads: number of heads.
        in_width: width of what comes in.
        columns: K; even.

    Raises:
        ValueError: an odd number of columns.
    """

    SCALE, CHANNELS = 2, 4

    def __init__(self, num_heads: int, in_width: int, columns: int) -> None:
        super().__init__()
        if columns < 1 or columns % self.SCALE:
            raise ValueError(f"the bidirectional estimate's width must be a multiple of {self.SCALE}, got {columns}")
        channels = self.CHANNELS * num_heads
        self.num_heads, self.columns = num_heads, columns
        self.expand = nn.Linear(in_width, self.CHANNELS * columns // self.SCALE)
        self.first_conv = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1)
        self.second_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.last_conv = nn.Conv2d(channels, num_heads, 3, padding=1)

    def forward(self, encoded: Encoded, *, lengths: Int[Tensor, " batch"] | None = None) -> Scores:
        """Scores of all rows, in at least float32.

        Args:
            encoded: the rows.
            lengths: how many of the first rows are real, in each row of the batch; None = all.
        """
        rows = encoded.shape[2]
        halves = None if lengths is None else torch.div(lengths + 1, 2, rounding_mode="floor")
        x = _without_padding(split_channels(wide_linear(encoded, self.expand), self.CHANNELS), lengths)
        x = _without_padding(_convolved(x, self.first_conv, stride=(2, 1)).relu(), halves)
        x = _without_padding(_convolved(x, self.second_conv).relu(), halves)
        x = _convolved(x.repeat_interleave(2, dim=2), self.last_conv)
        x = interpolate(x, (x.shape[2], self.columns), mode="bilinear")
        if lengths is None or halves is None:
            return x if x.shape[2] == rows else interpolate(x, (rows, self.columns), mode="bilinear")
        return _stretched_rows(x, 2 * halves, lengths, rows)


def split_channels(x: Encoded, channels: int) -> Maps:
    """`(b, h, n, channels * w)` to `(b, h * channels, n, w)`: the parts of each head's rows become its channels."""
    batch, heads, rows, width = x.shape
    parts = x.view(batch, heads, rows, channels, width // channels).transpose(2, 3)
    return parts.reshape(batch, heads * channels, rows, width // channels)


def _convolved(x: Maps, module: nn.Conv2d, *, stride: tuple[int, int] = (1, 1)) -> Maps:
    assert module.bias is not None
    return convolve(x, module.weight, module.bias, stride=stride, padding=1)


def _without_padding(x: Maps, lengths: Int[Tensor, " batch"] | None) -> Maps:
    if lengths is None:
        return x
    real = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
    return torch.where(real[:, None, :, None], x, 0)


def _stretched_rows(x: Maps, before: Int[Tensor, " batch"], after: Int[Tensor, " batch"], rows: int) -> Maps:
    """The first `before[b]` rows stretched to the first `after[b]`, linearly between the middles of rows."""
    row = torch.arange(rows, device=x.device, dtype=x.dtype)
    scale = before.to(x.dtype) / after.clamp(min=1).to(x.dtype)
    last = (before - 1).clamp(min=0)[:, None]
    place = torch.minimum(((row + 0.5) * scale[:, None] - 0.5).clamp(min=0), last.to(x.dtype))
    low = place.floor().long()
    high = torch.minimum(low + 1, last)
    share = (place - low)[:, None, :, None]

    def take(index: Tensor) -> Tensor:
        return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    return take(low) * (1 - share) + take(high) * share


def _last_rows(old: Maps, new: Maps, counts: Int[Tensor, " batch"]) -> Maps:
    """The last rows of the old ones and the first `counts[b]` new ones."""
    both = torch.cat((old, new.to(old.dtype)), dim=2)
    index = counts[:, None] + torch.arange(old.shape[2], device=old.device)
    return both.gather(2, index[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[3]))
