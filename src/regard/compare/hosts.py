"""The networks that every mechanism is put into: small, the same for all, with one width that balances the budget.

Text: `LanguageHost`. Series: `SeriesHost`. Images: `VisionHost` for sequence mixers, `ResidualHost` for feature mixers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

BYTES = 256
WINDOW_EPS = 1e-5
"""Added to a window's variance: a channel that stands still is only shifted."""
WIDTH_UNITS = 1024
"""In the residual host an inner width is the stage's width times `knob / WIDTH_UNITS`, rounded."""


class Block(nn.Module):
    """A pre-norm transformer block: mixer, then a two-layer perceptron, each with a residual connection.

    Args:
        mixer: the mechanism.
        dim: width.
        hidden: width inside the perceptron.
    """

    def __init__(self, mixer: nn.Module, *, dim: int, hidden: int) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Mix tokens, then features."""
        x = x + self.mixer(self.mixer_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class LanguageHost(nn.Module):
    """A causal language model over bytes, without positions but those that a mixer brings along.

    Args:
        make_mixer: builds the mixer of a layer, given its number.
        dim: width.
        num_layers: number of blocks.
        hidden: width inside the perceptrons.
    """

    def __init__(self, make_mixer: Callable[[int], nn.Module], *, dim: int, num_layers: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, dim)
        self.blocks = nn.ModuleList(Block(make_mixer(layer), dim=dim, hidden=hidden) for layer in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, BYTES)

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens bytes"]:
        """Scores of the next byte after every byte."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def mixers(self) -> list[Any]:
        """The mechanism in each layer."""
        return [block.mixer for block in self.blocks]


class SeriesHost(nn.Module):
    """A forecaster of a multivariate series, read after the last time step, without positions but those of a mixer.

    All channels of a time step are one token. Each window is normalised by its own mean and standard deviation, and
    the forecast scaled back, as in `regard.models.series.forecaster`.

    Args:
        make_mixer: builds the mixer of a layer, given its number.
        dim: width.
        num_layers: number of blocks.
        hidden: width inside the perceptrons.
        channels: numbers per time step.
        horizon: time steps that are forecast.
    """

    def __init__(
        self,
        make_mixer: Callable[[int], nn.Module],
        *,
        dim: int,
        num_layers: int,
        hidden: int,
        channels: int,
        horizon: int,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.embedding = nn.Linear(channels, dim)
        self.blocks = nn.ModuleList(Block(make_mixer(layer), dim=dim, hidden=hidden) for layer in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, horizon * channels)

    def forward(self, series: Float[Tensor, "batch context channels"]) -> Float[Tensor, "batch horizon channels"]:
        """The time steps that follow."""
        mean = series.mean(dim=1, keepdim=True)
        scale = (series.var(dim=1, keepdim=True, correction=0) + WINDOW_EPS).sqrt()
        x = self.embedding((series - mean) / scale)
        for block in self.blocks:
            x = block(x)
        forecast = self.head(self.norm(x[:, -1])).unflatten(-1, (self.horizon, series.shape[-1]))
        return forecast * scale + mean

    def mixers(self) -> list[Any]:
        """The mechanism in each layer."""
        return [block.mixer for block in self.blocks]


class VisionHost(nn.Module):
    """A small vision transformer on patches in row-major order, with learned positions.

    Args:
        make_mixer: builds the mixer of a layer, given its number.
        dim: width.
        num_layers: number of blocks.
        hidden: width inside the perceptrons.
        channels: channels of the images.
        patch: pixels per side of a patch.
        tokens: patches per image.
        classes: number of classes.
        read_last: read the last token, which has seen all others, instead of the mean; for causal mixers.
    """

    def __init__(
        self,
        make_mixer: Callable[[int], nn.Module],
        *,
        dim: int,
        num_layers: int,
        hidden: int,
        channels: int,
        patch: int,
        tokens: int,
        classes: int,
        read_last: bool,
    ) -> None:
        super().__init__()
        self.read_last = read_last
        self.patches = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)
        self.positions = nn.Parameter(torch.zeros(1, tokens, dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(Block(make_mixer(layer), dim=dim, hidden=hidden) for layer in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, images: Float[Tensor, "batch channels y x"]) -> Float[Tensor, "batch classes"]:
        """Scores of the classes."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, -1] if self.read_last else x.mean(dim=1))

    def mixers(self) -> list[Any]:
        """The mechanism in each layer."""
        return [block.mixer for block in self.blocks]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norms, the feature mixer after the second norm, and a shortcut.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        inner: channels between the two convolutions.
        stride: of the first convolution.
        mixer: the mechanism, on `out_channels` channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, inner: int, stride: int, mixer: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, inner, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(inner)
        self.second = nn.Conv2d(inner, out_channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out_channels)
        self.mixer = mixer
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Float[Tensor, "batch channels y x"]) -> Float[Tensor, "batch channels y x"]:
        """The block's output; halves the size where the stride is 2."""
        inner = self.first_norm(self.first(x)).relu()
        mixed = self.mixer(self.second_norm(self.second(inner)))
        return (mixed + self.shortcut(x)).relu()


class ResidualHost(nn.Module):
    """A small residual network of three stages, a quarter, half and all of `dim` wide.

    Args:
        make_mixer: builds the mixer for a number of channels.
        dim: width of the last stage.
        blocks_per_stage: residual blocks in each stage.
        knob: inner width of the blocks in 1024ths of the stage's width.
        channels: channels of the images.
        classes: number of classes.
    """

    def __init__(
        self,
        make_mixer: Callable[[int], nn.Module],
        *,
        dim: int,
        blocks_per_stage: int,
        knob: int,
        channels: int,
        classes: int,
    ) -> None:
        super().__init__()
        widths = (max(1, dim // 4), max(1, dim // 2), dim)
        width = widths[0]
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        blocks: list[ResidualBlock] = []
        total = len(widths) * blocks_per_stage
        for stage, stage_width in enumerate(widths):
            for number in range(blocks_per_stage):
                # rounded differently in every block, so that one step of the knob widens one block at a time
                share = WIDTH_UNITS * len(blocks) // total
                inner = max(1, (stage_width * knob + share) // WIDTH_UNITS)
                stride = 2 if stage and number == 0 else 1
                mixer = make_mixer(stage_width)
                blocks.append(ResidualBlock(width, stage_width, inner=inner, stride=stride, mixer=mixer))
                width = stage_width
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Float[Tensor, "batch channels y x"]) -> Float[Tensor, "batch classes"]:
        """Scores of the classes."""
        x = self.stem_norm(self.stem(images)).relu()
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))

    def mixers(self) -> list[Any]:
        """The mechanism in each block."""
        return [block.mixer for block in self.blocks]


Host = LanguageHost | SeriesHost | VisionHost | ResidualHost
