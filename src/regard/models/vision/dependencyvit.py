"""DependencyViT: an image Transformer whose patches send messages to their parents, and the tree that they form.

Paper: "Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention", Ding et al., CVPR 2023,
https://arxiv.org/abs/2304.03282.
The authors' repository, dingmyu/DependencyViT@3dcf3591, holds a licence and nothing else: no code and no weights. This
follows the paper's formulas and, where they are silent, an independent implementation in timm's style (Fredo Guan,
2023, `timm/models/dependencyvit.py:DependencyViT`), which was never trained; its layout is what `load_reference`
takes. Nothing here could be checked against the authors, so no figure of theirs is given as reported: parameters and
contractions are counted by the formula. Their totals are a few percent larger, which a wider message controller or
biases would explain: `controller_width`, `controller_bias` and `selector_bias`.

A patch of 16 pixels is a token, with learned positions and without a class token; the classifier sees the mean over
tokens, normed and then multiplied by m, so that tokens that still send dominate. The lite networks keep fewer tokens
after the attention of layers 2, 5, 8 and 11, counted from 1: only so are their contractions 0.849 G and 3.144 G at
224 x 224 (counted from 0 they would be 0.921 G and 3.40 G), with 164, 132, 100 and 69 of 196 tokens left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.contract import load_strictly
from regard.layers.dependency_block import DependencyBlock, Pruning
from regard.layers.drop_path import linear_rates
from regard.layers.positioned_patches import PositionedPatches
from regard.layers.reference_names import rename_all
from regard.layers.reversed_attention import REVERSED_ATTENTION_NAMES, SCORES, ReversedAttention, Score
from regard.metadata import Paper, Reported, Variant
from regard.models.vision.backbone import Backbone, Images, Maps
from regard.models.vision.dependency_parsing import DependencyParse, parse_masks
from regard.ops.reversed_attention import kept_part, put_tokens, tokens_kept
from regard.registry import register

NORM_EPS = 1e-6
"""As in timm's Transformers."""
Gate = Literal["after_norm", "before_norm", "none"]
GATES: tuple[Gate, ...] = ("after_norm", "before_norm", "none")
Root = Literal["received", "m"]


@dataclass(frozen=True, kw_only=True)
class DependencyViTConfig:
    """The network's sizes.

    Args:
        image_size: pixels per side of an image.
        in_channels: channels of the images.
        num_classes: number of classes.
        patch_size: pixels per side of a patch; must divide `image_size`.
        dim: width.
        num_layers: number of blocks.
        num_heads: heads of reversed attention.
        mlp_ratio: width inside the perceptrons over `dim`.
        qkv_bias: biases in the projections of queries, keys and values.
        temperature: of the head selector.
        selector_bias: a bias in the head selector.
        controller_width: width inside the message controller; None = half of `dim`.
        controller_bias: biases in the message controller.
        layer_scale: start of the learned factor on each channel of a branch; None = no factor.
        init_std: standard deviation of the linear maps' weights at the start; None = as PyTorch begins them.
        prune_layers: layers, counted from 1, after whose attention fewer tokens are kept.
        prune_ratio: part of all tokens that each pruning takes.
        prune_score: by which tokens are kept: what they "received", what they "sent", or "random" as a control.
        output_gate: m times the tokens after the last norm or before it, or not at all.
        interpolate_positions: take images of other sizes, whose positions are interpolated; else they are refused.
        drop_path: rate of stochastic depth at the last block; it rises linearly from 0.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    patch_size: int = 16
    dim: int = 192
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    temperature: float = 0.1
    selector_bias: bool = False
    controller_width: int | None = None
    controller_bias: bool = False
    layer_scale: float | None = 1e-6
    init_std: float | None = 0.02
    prune_layers: tuple[int, ...] = ()
    prune_ratio: float = 0.16
    prune_score: Score = "received"
    output_gate: Gate = "after_norm"
    interpolate_positions: bool = False
    drop_path: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("num_classes", "num_layers", "mlp_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        layers = self.prune_layers
        if any(not 1 <= layer <= self.num_layers for layer in layers) or list(layers) != sorted(set(layers)):
            raise ValueError(f"prune_layers must rise and lie in 1..{self.num_layers} (num_layers), got {layers}")
        if self.prune_ratio < 0 or self.prune_ratio * len(layers) >= 1:
            raise ValueError(
                f"prune_ratio times the {len(layers)} prune_layers must be in [0, 1), got {self.prune_ratio}"
            )
        if self.prune_score not in SCORES:
            raise ValueError(f"prune_score must be one of {', '.join(SCORES)}, got {self.prune_score!r}")
        if self.output_gate not in GATES:
            raise ValueError(f"output_gate must be one of {', '.join(GATES)}, got {self.output_gate!r}")

    def tokens_left(self, tokens: int) -> list[int]:
        """How many of `tokens` are left after each pruning."""
        left = []
        for number, _ in enumerate(self.prune_layers, 1):
            tokens = tokens_kept(tokens, kept_part(number, self.prune_ratio))
            left.append(tokens)
        return left


def _variant(dim: int, *, params: int, macs: float, lite: bool) -> Variant:
    return Variant(
        config=DependencyViTConfig(dim=dim, prune_layers=(2, 5, 8, 11) if lite else ()),
        reported=Reported(
            params=params,
            macs=macs,
            where="counted by the formula: the authors published no code, and their figures are not confirmed",
            params_tolerance=0.0,
            macs_tolerance=0.002,
        ),
    )


@register(
    name="dependencyvit",
    system="dependencyvit",
    paper=Paper(
        title="Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention",
        authors="Ding et al.",
        venue="CVPR",
        year=2023,
        url="https://arxiv.org/abs/2304.03282",
        where="section 3",
    ),
)
class DependencyViT(Backbone):
    """A plain Transformer on patches with reversed attention; leaves may be pruned on the way.

    Images of another size than the config's are refused, or, with `interpolate_positions`, padded at the bottom and at
    the right to whole patches.

    Args:
        config: its sizes.

    Raises:
        ValueError: heads that do not divide the width.
    """

    SMALL: ClassVar[DependencyViTConfig] = DependencyViTConfig(
        image_size=8,
        in_channels=1,
        num_classes=10,
        patch_size=2,
        dim=64,
        num_layers=3,
        num_heads=4,
        mlp_ratio=2.0,
        layer_scale=None,
        init_std=None,
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "dependencyvit_tiny": _variant(192, params=5_964_712, macs=1.296e9, lite=False),
        "dependencyvit_small": _variant(384, params=22_987_624, macs=4.759e9, lite=False),
        "dependencyvit_lite_tiny": _variant(192, params=5_964_712, macs=0.849e9, lite=True),
        "dependencyvit_lite_small": _variant(384, params=22_987_624, macs=3.144e9, lite=True),
    }

    def __init__(self, config: DependencyViTConfig) -> None:
        super().__init__(config)
        self.patches = PositionedPatches(
            image_size=config.image_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            dim=config.dim,
            interpolate_positions=config.interpolate_positions,
        )
        rates = linear_rates(config.drop_path, config.num_layers)
        self.blocks = nn.ModuleList(_block(config, layer=layer, drop_path=rate) for layer, rate in enumerate(rates, 1))
        self.norm = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.head = nn.Linear(config.dim, config.num_classes)
        self.stage_channels = (config.dim,)
        self.stage_strides = (config.patch_size,)
        if config.init_std is not None:
            _initialise(self, config.init_std)

    def forward(self, images: Images) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes, from the mean over the tokens that are left.

        Raises:
            ValueError: images of another size or number of channels.
        """
        x, _ = self.tokens(images)
        return self.head(x.mean(dim=1))

    def features(self, images: Images) -> tuple[Maps, ...]:
        """The tokens as one map, zeros where they were pruned.

        Raises:
            ValueError: images of another size or number of channels.
        """
        x, kept = self.tokens(images)
        height, width = self.patches.grid(images)
        if kept is not None:
            x = put_tokens(x, kept, height * width)
        return (x.transpose(1, 2).unflatten(2, (height, width)),)

    def pool(self, last: Maps) -> Float[Tensor, "batch channels"]:
        """The mean over the positions that were not pruned."""
        tokens = last.shape[2] * last.shape[3]
        left = (tokens, *self.config.tokens_left(tokens))[-1]
        return last.sum(dim=(2, 3)) / left

    def dependency_tree(self, images: Images, *, root: Root = "received") -> DependencyParse:
        """The dependency tree of every image: parents, root, saliency and parts.

        Args:
            images: what is parsed.
            root: the patch that "received" most from others over all layers, or the one whose "m" is largest in the
                end.

        Raises:
            ValueError: images of another size or number of channels, masks that are not finite, or an unknown root.
        """
        if root not in ("received", "m"):
            raise ValueError(f"root must be received or m, got {root!r}")
        masks, m = self.dependency_masks(images)
        return parse_masks(
            masks,
            grid=self.patches.grid(images),
            patch_size=self.config.patch_size,
            image_size=(images.shape[2], images.shape[3]),
            roots=m.argmax(dim=1).tolist() if root == "m" else None,
        )

    @torch.no_grad()
    def dependency_masks(self, images: Images) -> tuple[Float[Tensor, "batch patches patches"], Tensor]:
        """What every patch (a row) received of every other (a column), summed over layers; and m in the end.

        Patches that were pruned received and sent nothing afterwards, and their m is 0.

        Raises:
            ValueError: images of another size or number of channels.
        """
        x, m, kept = self._embed(images), None, None
        batch, patches, _ = x.shape
        total: Tensor | None = None
        rows = torch.arange(batch, device=x.device)[:, None, None]
        for block in self.blocks:
            assert isinstance(block, DependencyBlock)
            mask = block.dependency_mask(x, m)
            if total is None or kept is None:
                total = mask if total is None else total + mask
            else:
                total[rows, kept[:, :, None], kept[:, None, :]] += mask
            x, m, kept = block(x, m, kept)
        assert total is not None
        assert m is not None
        return total, m if kept is None else put_tokens(m[..., None], kept, patches)[..., 0]

    def tokens(self, images: Images) -> tuple[Float[Tensor, "batch kept dim"], Tensor | None]:
        """The tokens that are left, normed and gated, and their row-major positions; None = all.

        Raises:
            ValueError: images of another size or number of channels.
        """
        x, m, kept = self._embed(images), None, None
        recompute = self.config.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x, m, kept = checkpoint(block, x, m, kept, use_reentrant=False) if recompute else block(x, m, kept)
        assert m is not None
        gate, place = m.to(x.dtype)[..., None], self.config.output_gate
        x = self.norm(x * gate if place == "before_norm" else x)
        return (x * gate if place == "after_norm" else x), kept

    def _embed(self, images: Tensor) -> Tensor:
        self.check_images(images)
        return self.patches(images)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the independent implementation's layout: `patch_embed.proj`, `pos_embed`, `blocks.0.attn.qkv`, ...

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, DEPENDENCYVIT_NAMES))

    def pruned(
        self, prune_layers: tuple[int, ...] = (2, 5, 8, 11), *, ratio: float = 0.16, score: Score = "received"
    ) -> DependencyViT:
        """A lite network of the same weights.

        Args:
            prune_layers: layers, counted from 1, after whose attention fewer tokens are kept.
            ratio: part of all tokens that each pruning takes.
            score: by which tokens are kept.

        Raises:
            ValueError: layers, a ratio or a score that the config refuses.
        """
        changed = replace(self.config, prune_layers=prune_layers, prune_ratio=ratio, prune_score=score)
        lite = DependencyViT(changed).to(self.patches.positions)
        lite.load_state_dict(self.state_dict())
        return lite.train(self.training)


def _block(config: DependencyViTConfig, *, layer: int, drop_path: float) -> DependencyBlock:
    """The block of a layer, counted from 1."""
    pruning = None
    if layer in config.prune_layers:
        number = config.prune_layers.index(layer) + 1
        pruning = Pruning(number=number, ratio=config.prune_ratio, score=config.prune_score)
    mixer = ReversedAttention(
        config.dim,
        num_heads=config.num_heads,
        qkv_bias=config.qkv_bias,
        temperature=config.temperature,
        selector_bias=config.selector_bias,
        controller_width=config.controller_width,
        controller_bias=config.controller_bias,
    )
    return DependencyBlock(
        mixer,
        dim=config.dim,
        hidden=round(config.dim * config.mlp_ratio),
        drop_path=drop_path,
        layer_scale=config.layer_scale,
        pruning=pruning,
        norm_eps=NORM_EPS,
    )


DEPENDENCYVIT_NAMES = (
    *REVERSED_ATTENTION_NAMES,
    (r"^patch_embed\.proj\.", "patches.proj."),
    (r"^pos_embed$", "patches.positions"),
    (r"\.norm1\.", ".mixer_norm."),
    (r"\.attn\.", ".mixer."),
    (r"\.ls1\.gamma$", ".mixer_scale"),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.mlp\.fc1\.", ".mlp.up_proj."),
    (r"\.mlp\.fc2\.", ".mlp.down_proj."),
    (r"\.ls2\.gamma$", ".mlp_scale"),
)
"""Parts of the network in the independent implementation as ours."""


def _initialise(model: nn.Module, std: float) -> None:
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
