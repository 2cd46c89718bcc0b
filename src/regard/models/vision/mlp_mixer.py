"""MLP-Mixer: perceptrons along the tokens and along the channels of image patches, in turn.

Paper: "MLP-Mixer: An all-MLP Architecture for Vision", Tolstikhin et al., NeurIPS 2021,
https://arxiv.org/abs/2105.01601, figure 1 and table 1.
Compared with timm's `mixer_b16_224`, whose checkpoint layout it loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.contract import Model, load_strictly
from regard.layers.mixer_block import MixerBlock
from regard.layers.patch_embedding import PatchEmbedding
from regard.metadata import Paper, Reported, Variant
from regard.registry import register

NORM_EPS = 1e-6
"""As in the authors' framework and in timm."""


@dataclass(frozen=True, kw_only=True)
class MLPMixerConfig:
    """The network's sizes.

    Args:
        image_size: pixels per side of an image.
        in_channels: channels of the images.
        num_classes: number of classes.
        patch_size: pixels per side of a patch; must divide `image_size`.
        dim: width.
        num_layers: number of blocks.
        token_hidden: width inside the perceptrons along the tokens.
        hidden: width inside the perceptrons along the channels.
        dropout: probability of dropping a number in the perceptrons.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    patch_size: int = 16
    dim: int = 768
    num_layers: int = 12
    token_hidden: int = 384
    hidden: int = 3072
    dropout: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("num_classes", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


@register(
    name="mlp_mixer",
    system="mlp_mixer",
    paper=Paper(
        title="MLP-Mixer: An all-MLP Architecture for Vision",
        authors="Tolstikhin et al.",
        venue="NeurIPS",
        year=2021,
        url="https://arxiv.org/abs/2105.01601",
        where="figure 1 and table 1",
    ),
)
class MLPMixer(Model):
    """An image classifier without attention or convolution, whose token mixing is the same for every image.

    Args:
        config: its sizes.

    Raises:
        ValueError: a size that is not positive, or an image that the patches do not fill.
    """

    task: ClassVar[str] = "classification"
    SMALL: ClassVar[MLPMixerConfig] = MLPMixerConfig(
        image_size=8,
        in_channels=1,
        num_classes=10,
        patch_size=2,
        dim=64,
        num_layers=3,
        token_hidden=128,
        hidden=128,
        dropout=0.1,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "mlp_mixer_b16": Variant(
            config=MLPMixerConfig(), reported=Reported(params=59e6, where="table 1", params_tolerance=0.02)
        ),
    }

    def __init__(self, config: MLPMixerConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = PatchEmbedding(
            image_size=config.image_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            dim=config.dim,
        )
        self.blocks = nn.ModuleList(
            MixerBlock(
                self.patches.seq_len,
                config.dim,
                token_hidden=config.token_hidden,
                channel_hidden=config.hidden,
                dropout=config.dropout,
                norm_eps=NORM_EPS,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, images: Float[Tensor, "batch in_channels y x"]) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes.

        Raises:
            ValueError: images of another size or number of channels.
        """
        x = self.patches(images)
        recompute = self.config.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.head(self.norm(x).mean(dim=1))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load timm's layout: `stem.proj`, `blocks.0.mlp_tokens.fc1`, ..., `norm`, `head`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, {_own_name(name): tensor for name, tensor in state_dict.items()})


_PARTS = {
    "norm1": "token_norm",
    "mlp_tokens.fc1": "token_mlp.up_proj",
    "mlp_tokens.fc2": "token_mlp.down_proj",
    "norm2": "channel_norm",
    "mlp_channels.fc1": "channel_mlp.up_proj",
    "mlp_channels.fc2": "channel_mlp.down_proj",
}


def _own_name(name: str) -> str:
    found = re.fullmatch(r"(blocks\.\d+)\.(.+)\.(weight|bias)", name)
    if found is not None and found[2] in _PARTS:
        return f"{found[1]}.{_PARTS[found[2]]}.{found[3]}"
    return f"patches.{name.removeprefix('stem.')}" if name.startswith("stem.") else name
