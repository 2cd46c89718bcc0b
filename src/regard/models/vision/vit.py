"""Vision Transformer whose mixer is any registered sequence mixer; softmax attention unless another is named.

Paper: "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", Dosovitskiy et al., ICLR 2021,
https://arxiv.org/abs/2010.11929, section 3.1 and table 1.
Compared with timm's `vit_base_patch16_224` (with a class token) and, without one, with its mean over normed tokens;
it loads their checkpoint layout.
A mixer that is causal alone reads patches in row-major order, and the last one, which has seen all, is classified.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import Model, load_strictly
from regard.layers.encoder_block import Encoder
from regard.layers.patch_embedding import PatchEmbedding
from regard.metadata import No, Paper, Reported, Variant
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.registry import entry_of, register

NORM_EPS = 1e-6
"""As in the authors' framework and in timm."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The network's sizes.

    Args:
        image_size: pixels per side of an image.
        in_channels: channels of the images.
        num_classes: number of classes.
        patch_size: pixels per side of a patch; must divide `image_size`.
        dim: width.
        num_layers: number of blocks.
        num_heads: heads of every mixer.
        hidden: width inside the perceptrons.
        dropout: probability of dropping a number of the embedded patches and of every branch.
        mixer: registered name of the mixer.
        mixer_options: further constructor arguments of the mixer.
        class_token: classify a learned token that goes before the patches; else their mean, or for mixers that are
            causal alone the last of them.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    patch_size: int = 16
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    hidden: int = 3072
    dropout: float = 0.0
    mixer: str = "softmax"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    class_token: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {self.num_classes}")


@register(
    name="vit",
    system="vit",
    paper=Paper(
        title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        authors="Dosovitskiy et al.",
        venue="ICLR",
        year=2021,
        url="https://arxiv.org/abs/2010.11929",
        where="section 3.1 and table 1",
    ),
)
class ViT(Model):
    """A Transformer on image patches with learned positions.

    Args:
        config: its sizes.

    Raises:
        UnknownSystemError: no such mixer.
        ValueError: a size that is not positive or that the mixer refuses, an image that the patches do not fill, or a
            class token before patches that it could not see.
    """

    task: ClassVar[str] = "classification"
    SMALL: ClassVar[ViTConfig] = ViTConfig(
        image_size=8,
        in_channels=1,
        num_classes=10,
        patch_size=2,
        dim=64,
        num_layers=3,
        num_heads=4,
        hidden=128,
        dropout=0.1,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "vit_b16": Variant(
            config=ViTConfig(class_token=True),
            reported=Reported(params=86e6, where="table 1", params_tolerance=0.01),
        ),
    }

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        traits = entry_of(config.mixer).traits
        self.causal = traits is not None and isinstance(traits.bidirectional, No)
        if self.causal and config.class_token:
            raise ValueError(f"class_token=True with the causal mixer {config.mixer}: the first token sees no patch")
        self.patches = PatchEmbedding(
            image_size=config.image_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            dim=config.dim,
        )
        tokens = self.patches.seq_len + config.class_token
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.class_token else None
        self.positions = nn.Parameter(torch.empty(1, tokens, config.dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.encoder = Encoder(
            config.mixer,
            dim=config.dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            hidden=config.hidden,
            causal=self.causal,
            dropout=config.dropout,
            norm_eps=NORM_EPS,
            mixer_options=config.mixer_options,
            checkpointing=config.checkpointing,
        )
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, images: Float[Tensor, "batch in_channels y x"]) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes.

        Raises:
            ValueError: images of another size or number of channels.
        """
        x = self.patches(images)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.encoder(x + self.positions)
        if self.class_token is not None:
            return self.head(x[:, 0])
        return self.head(x[:, -1] if self.causal else x.mean(dim=1))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load timm's layout: `cls_token`, `pos_embed`, `patch_embed.proj`, `blocks.0.attn.qkv`, ..., `norm`, `head`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape, or a mixer that is not softmax attention.
        """
        if not all(isinstance(mixer, SoftmaxAttention) for mixer in self.encoder.mixers()):
            raise ValueError(f"timm's layout holds softmax attention, and the mixer here is {self.config.mixer}")
        made: dict[str, Tensor] = {}
        for name, tensor in state_dict.items():
            packed = re.fullmatch(r"(blocks\.\d+)\.attn\.qkv\.(weight|bias)", name)
            if packed is None:
                made[_own_name(name)] = tensor
            else:
                for kind, part in zip("qkv", tensor.chunk(3), strict=True):
                    made[f"encoder.{packed[1]}.mixer.{kind}_proj.{packed[2]}"] = part
        load_strictly(self, made)


_PARTS = {
    "norm1": "mixer_norm",
    "attn.proj": "mixer.o_proj",
    "norm2": "mlp_norm",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}
_WHOLE = {"cls_token": "class_token", "pos_embed": "positions"}


def _own_name(name: str) -> str:
    found = re.fullmatch(r"(blocks\.\d+)\.(.+)\.(weight|bias)", name)
    if found is not None and found[2] in _PARTS:
        return f"encoder.{found[1]}.{_PARTS[found[2]]}.{found[3]}"
    if name.startswith("patch_embed."):
        return f"patches.{name.removeprefix('patch_embed.')}"
    return f"encoder.{name}" if name.startswith("norm.") else _WHOLE.get(name, name)
