"""A small image generator out of MaxViT's parts: from a latent vector, through ever finer maps, to an image.

Paper: "MaxViT: Multi-Axis Vision Transformer", Tu et al., ECCV 2022, https://arxiv.org/abs/2204.01697, experiments
(unconditional generation). Only classification was published as code, so this is a generator of our own: attention
across the map comes first, then nearby, then the convolution, so that an image is laid out before it is filled in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from regard.contract import FeatureMixer
from regard.layers.mbconv import MBConv
from regard.mixers.spatial.maxvit_block import MaxViTBlockAttention
from regard.mixers.spatial.maxvit_grid import MaxViTGridAttention
from regard.models.vision.maxvit_blocks import AttentionBlock

Maps = Float[Tensor, "batch channels y x"]


@dataclass(frozen=True, kw_only=True)
class MaxViTGeneratorConfig:
    """The generator's sizes.

    Args:
        latent_dim: width of the latent vector.
        out_channels: channels of the images.
        dims: width of each stage, coarsest first; each but the first doubles the map's sides.
        start_size: positions per side of the first stage's map.
        window_size: positions per side of windows and of combs.
        head_dim: width of a head.
        expand_ratio: width inside the convolutions over the stage's.
        mlp_ratio: width inside the perceptrons over the stage's.
        attention: whether there is attention; without, its perceptrons and the convolutions remain.
    """

    latent_dim: int = 32
    out_channels: int = 1
    dims: tuple[int, ...] = (64, 32)
    start_size: int = 4
    window_size: int = 4
    head_dim: int = 16
    expand_ratio: int = 2
    mlp_ratio: float = 2.0
    attention: bool = True

    def __post_init__(self) -> None:
        for name in ("latent_dim", "out_channels", "start_size", "window_size", "head_dim", "expand_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.dims or min(self.dims) < 1:
            raise ValueError(f"dims must have a positive number for each stage, got {self.dims}")
        odd = [dim for dim in self.dims if dim % self.head_dim]
        if odd:
            raise ValueError(f"head_dim={self.head_dim} must divide the width of every stage, got {odd[0]}")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")

    @property
    def image_size(self) -> int:
        """Pixels per side of the images."""
        return self.start_size << (len(self.dims) - 1)


class MaxViTGenerator(nn.Module):
    """Images from latent vectors: grid attention, block attention and a convolution at every size.

    Args:
        config: its sizes.
    """

    def __init__(self, config: MaxViTGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.start = nn.Linear(config.latent_dim, config.dims[0] * config.start_size**2)
        self.stages = nn.ModuleList(_Stage(config, stage) for stage in range(len(config.dims)))
        self.norm = nn.LayerNorm(config.dims[-1])
        self.out = nn.Conv2d(config.dims[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: Float[Tensor, "batch latent_dim"]) -> Float[Tensor, "batch out_channels y x"]:
        """Images with values between -1 and 1.

        Raises:
            ValueError: latents that are not `(batch, latent_dim)`.
        """
        config = self.config
        if latents.ndim != 2 or latents.shape[1] != config.latent_dim:
            raise ValueError(f"latents must have shape (batch, {config.latent_dim}), got {tuple(latents.shape)}")
        size = config.start_size
        x = self.start(latents).unflatten(1, (size, size, config.dims[0])).permute(0, 3, 1, 2)
        for stage in self.stages:
            x = stage(x)
        return self.out(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).tanh()


class _Stage(nn.Module):
    """A finer map (but for the first stage), grid attention, block attention, and a convolution."""

    def __init__(self, config: MaxViTGeneratorConfig, stage: int) -> None:
        super().__init__()
        dim = config.dims[stage]
        self.finer = nn.Conv2d(config.dims[stage - 1], 4 * dim, 1) if stage else None
        self.attention = nn.ModuleList(
            AttentionBlock(mixer, channels=dim, hidden=round(dim * config.mlp_ratio)) for mixer in _mixers(config, dim)
        )
        self.conv = MBConv(dim, dim, expand_ratio=config.expand_ratio)

    def forward(self, x: Maps) -> Float[Tensor, "batch out_channels y_out x_out"]:
        """Each position becomes four before they are mixed."""
        if self.finer is not None:
            x = pixel_shuffle(self.finer(x), 2)
        x = x.contiguous(memory_format=torch.channels_last)
        for block in self.attention:
            x = block(x)
        return self.conv(x)


def _mixers(config: MaxViTGeneratorConfig, dim: int) -> list[FeatureMixer | None]:
    if not config.attention:
        return [None, None]
    heads = dim // config.head_dim
    return [
        MaxViTGridAttention(dim, num_heads=heads, grid_size=config.window_size),
        MaxViTBlockAttention(dim, num_heads=heads, window_size=config.window_size),
    ]
