"""NiNformer: an attention-free vision network whose blocks gate each token by a mixture of all tokens.

Paper: "NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function", Abdullah and Aydin,
2024, https://arxiv.org/abs/2403.02411.
Compared with Abdullah-88/NiNformer@0ec85d46: `ninformer.py:NiNformer` (the blocks) and
`train.py:NiNformerImageClassification`; parameters are counted on that code.
A block has one norm, used twice: before the gating unit and before the perceptron. There are no position embeddings,
since token mixing knows positions, and no norm before the mean over tokens. Everything begins as PyTorch begins it.
Training in that code: Adam, learning rate 1e-3, batches of 128, 100 epochs, cross-entropy; random crops of 32 with a
padding of 4, and horizontal flips. It crops and flips the test images, too, which an evaluation should not.
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
from regard.layers.feed_forward import FeedForward
from regard.layers.patch_embedding import PatchEmbedding
from regard.metadata import Reported, Variant
from regard.mixers.sequence import ninformer as gating
from regard.mixers.sequence.ninformer import NINFORMER_PAPER, MixerGatingUnit
from regard.registry import register


@dataclass(frozen=True, kw_only=True)
class NiNformerConfig:
    """The network's sizes.

    Args:
        image_size: pixels per side of an image.
        in_channels: channels of the images.
        num_classes: number of classes.
        patch_size: pixels per side of a patch; must divide `image_size`.
        dim: width.
        num_layers: number of blocks.
        hidden: width inside all perceptrons: along tokens, along channels, and after the gating unit.
        dropout: probability of dropping a number in the perceptrons.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    image_size: int = 32
    in_channels: int = 3
    num_classes: int = 10
    patch_size: int = 4
    dim: int = 256
    num_layers: int = 4
    hidden: int = 512
    dropout: float = 0.5
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "in_channels", "num_classes", "patch_size", "dim", "num_layers", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size must divide image_size={self.image_size}, got {self.patch_size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def seq_len(self) -> int:
        """Number of patches."""
        return (self.image_size // self.patch_size) ** 2


class NiNformerBlock(nn.Module):
    """The gating unit and a perceptron, each behind the same norm and with a residual of what came before the norm.

    Args:
        seq_len: number of tokens, which is fixed.
        dim: width.
        hidden: width inside all perceptrons.
        dropout: probability of dropping a number in the perceptrons.
    """

    def __init__(self, seq_len: int, dim: int, *, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = MixerGatingUnit(dim, seq_len=seq_len, token_hidden=hidden, channel_hidden=hidden, dropout=dropout)
        self.mlp = FeedForward(dim, hidden, dropout=dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Gate, then the perceptron."""
        x = x + self.mixer(self.norm(x))
        return x + self.mlp(self.norm(x))


class NiNformer(nn.Module):
    """The blocks, on tokens.

    Args:
        seq_len: number of tokens, which is fixed.
        dim: width.
        num_layers: number of blocks.
        hidden: width inside all perceptrons.
        dropout: probability of dropping a number in the perceptrons.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    def __init__(
        self,
        seq_len: int,
        dim: int,
        *,
        num_layers: int,
        hidden: int,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(
            NiNformerBlock(seq_len, dim, hidden=hidden, dropout=dropout) for _ in range(num_layers)
        )

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """All blocks, one after the other; no norm at the end.

        Raises:
            ValueError: another number of tokens.
        """
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `model.0.norm`, `model.0.mgu`, `model.0.ffn`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, {own_name(name): tensor for name, tensor in state_dict.items()})


@register(name="ninformer_classifier", system="ninformer", paper=NINFORMER_PAPER)
class NiNformerClassifier(Model):
    """NiNformer on image patches: the mean over tokens, and a linear classifier.

    Args:
        config: its sizes.
    """

    task: ClassVar[str] = "classification"
    SMALL: ClassVar[NiNformerConfig] = NiNformerConfig(
        image_size=8, in_channels=1, patch_size=2, dim=64, num_layers=3, hidden=128, dropout=0.1
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "ninformer_cifar10": Variant(
            config=NiNformerConfig(),
            reported=Reported(params=2_652_170, where="counted on the authors' code", params_tolerance=0.0),
        ),
        "ninformer_mnist": Variant(
            config=NiNformerConfig(image_size=28, in_channels=1),
            reported=Reported(params=2_582_478, where="counted on the authors' code", params_tolerance=0.0),
        ),
        "ninformer_cifar100": Variant(
            config=NiNformerConfig(num_classes=100),
            reported=Reported(
                params=2_675_300,
                where="the count for CIFAR-10, with 90 classes more of 257 numbers each",
                params_tolerance=0.0,
            ),
        ),
    }

    def __init__(self, config: NiNformerConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = PatchEmbedding(
            image_size=config.image_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            dim=config.dim,
        )
        self.backbone = NiNformer(
            config.seq_len,
            config.dim,
            num_layers=config.num_layers,
            hidden=config.hidden,
            dropout=config.dropout,
            checkpointing=config.checkpointing,
        )
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, images: Float[Tensor, "batch in_channels y x"]) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes.

        Raises:
            ValueError: images of another size or number of channels.
        """
        return self.head(self.backbone(self.patches(images)).mean(dim=1))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `patcher`, `model.0.mgu.proj`, ..., `classifier`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, {own_classifier_name(name): tensor for name, tensor in state_dict.items()})


def own_name(name: str) -> str:
    """`model.1.ffn.net.0.weight`, as the authors name it, as `blocks.1.mlp.up_proj.weight`."""
    found = re.fullmatch(r"model\.(\d+)\.(norm|ffn|mgu)\.(.+)", name)
    if found is None:
        return name
    number, part, rest = found.groups()
    if part == "mgu":
        return f"blocks.{number}.mixer.{gating.own_name(rest)}"
    if part == "ffn":
        rest = re.sub(r"^net\.0\.", "up_proj.", re.sub(r"^net\.3\.", "down_proj.", rest))
        return f"blocks.{number}.mlp.{rest}"
    return f"blocks.{number}.norm.{rest}"


def own_classifier_name(name: str) -> str:
    """`patcher.weight` as `patches.proj.weight`, `classifier.bias` as `head.bias`, and the blocks' names."""
    first, _, rest = name.partition(".")
    renamed = {"patcher": f"patches.proj.{rest}", "classifier": f"head.{rest}", "model": f"backbone.{own_name(name)}"}
    return renamed.get(first, name)


def ninformer_macs(config: NiNformerConfig) -> int:
    """Contraction MACs of one image: in a block N D^2 for the gated map and 2 N D h for each of three perceptrons."""
    tokens, dim, hidden = config.seq_len, config.dim, config.hidden
    block = tokens * dim**2 + 6 * tokens * dim * hidden
    patches = tokens * config.patch_size**2 * config.in_channels * dim
    return config.num_layers * block + patches + dim * config.num_classes
