"""What SHViT and EfficientViT share: a stem of stride 16, stages with merging between them, and folding for inference.

Papers: "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", Liu et al., CVPR 2023,
https://arxiv.org/abs/2305.07027; "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design",
Yun and Ro, CVPR 2024, https://arxiv.org/abs/2401.16456.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.layers.conv_norm import NormLinear, fold_norms
from regard.layers.drop_path import linear_rates
from regard.layers.light_backbone import ConvStem, DistilledHead, StageTransition, gate_width
from regard.mixers.channel.squeeze_excitation import SqueezeExcitation
from regard.models.vision.backbone import Backbone, Images, Maps

PART_NAMES = (
    (r"(^|\.)pw1\.", r"\1up_proj."),
    (r"(^|\.)pw2\.", r"\1down_proj."),
    (r"\.merging\.conv1\.", ".merging.up_proj."),
    (r"\.merging\.conv2\.", ".merging.depthwise."),
    (r"\.merging\.conv3\.", ".merging.down_proj."),
    (r"\.merging\.se\.fc1\.", ".merging.gate.down_proj."),
    (r"\.merging\.se\.fc2\.", ".merging.gate.up_proj."),
    (r"^head\.l\.", "head.linear."),
    (r"(^|\.)c\.weight$", r"\1conv.weight"),
    (r"(^|\.)bn\.", r"\1norm."),
)
"""Parts of perceptrons, mergings and heads in all layouts as ours."""
_DISTILLED_NAMES = (
    (r"^head\.(?=bn|l)", "head.labels."),
    (r"^head_dist\.", "head.teacher."),
    (r"^head\.(labels|teacher)\.l\.", r"head.\1.linear."),
)


class LightStage(nn.Module):
    """A passage from the stage before, and blocks.

    Args:
        transition: halves the map; None in the first stage.
        blocks: on maps of one size.
    """

    def __init__(self, transition: StageTransition | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.transition = transition
        self.blocks = nn.ModuleList(blocks)


class LightNetwork(Backbone):
    """A stem, stages of blocks, and a classifier behind a batch norm; a subclass says what a block is.

    Maps are kept with the channels last in memory, which makes positions the rows of matrices.

    Args:
        config: its sizes; has `in_channels`, `num_classes`, `dims`, `depths`, `patch_size`, `mlp_ratio`,
            `distillation`, `drop_path` and `checkpointing`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.stem = ConvStem(config.in_channels, config.dims[0], patch_size=config.patch_size)
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            blocks = [self.block(stage, next(rates)) for _ in range(depth)]
            self.stages.append(LightStage(_transition(config, stage), blocks))
        self.stage_channels = config.dims
        self.stage_strides = tuple(config.patch_size << stage for stage in range(len(config.dims)))
        head = DistilledHead if config.distillation else NormLinear
        self.head = head(config.dims[-1], config.num_classes)

    @abstractmethod
    def block(self, stage: int, drop_path: float) -> nn.Module:
        """A block of a stage, counted from 0."""

    def features(self, images: Images) -> tuple[Maps, ...]:
        """The output of every stage, finest first."""
        self.check_images(images)
        x, outputs = self.stem(images.contiguous(memory_format=torch.channels_last)), []
        for stage in self.stages:
            assert isinstance(stage, LightStage)
            if stage.transition is not None:
                x = self.run(stage.transition, x)
            for block in stage.blocks:
                x = self.run(block, x)
            outputs.append(x)
        return tuple(outputs)

    def pool(self, last: Maps) -> Float[Tensor, "batch channels"]:
        """The mean over positions."""
        return last.mean(dim=(2, 3))

    def fused(self) -> Self:
        """A copy for inference without batch norms: they, and the shortcuts around depth-wise convolutions, are folded
        into the weights.
        """
        made = copy.deepcopy(self).eval().requires_grad_(False)
        fold_norms(made)
        return made


def _transition(config: Any, stage: int) -> StageTransition | None:
    if stage == 0:
        return None
    before, after = config.dims[stage - 1 : stage + 1]
    gate = SqueezeExcitation(4 * before, hidden=gate_width(before), bias=True)
    return StageTransition(before, after, mlp_ratio=config.mlp_ratio, gate=gate)


# --------------------------------------------------------------------------------------------------- reference layouts


def stage_names(config: Any) -> tuple[tuple[str, str], ...]:
    """Where stages, passages and the stem's convolutions are in the authors' layouts, and in timm's, as ours.

    Args:
        config: as for `LightNetwork`.
    """
    rules: list[tuple[str, str]] = []
    for number in range(config.patch_size.bit_length() - 1):
        rules += [(pattern, f"stem.layers.{number}.") for pattern in _stem_patterns(number)]
    for stage, depth in enumerate(config.depths):
        own, theirs = f"stages.{stage}.", rf"^blocks{stage + 1}\."
        if stage > 0:
            for part, name in (("before", "0"), ("after", "2")):
                rules.append((rf"{theirs}{name}\.0\.m\.", f"{own}transition.{part}.position.branch."))
                rules.append((rf"{theirs}{name}\.1\.m\.", f"{own}transition.{part}.mlp."))
            rules.append((rf"{theirs}1\.", f"{own}transition.merging."))
        # the passage is the first three modules of a stage
        first = 3 if stage > 0 else 0
        rules += [(rf"{theirs}{first + block}\.", f"{own}blocks.{block}.") for block in range(depth)]
    heads = _DISTILLED_NAMES if config.distillation else ()
    return (*rules, *heads)


def _stem_patterns(number: int) -> tuple[str, str]:
    return rf"^patch_embed\.{2 * number}\.", rf"^patch_embed\.conv{number + 1}\."


def fit_pointwise(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of 1x1 convolutions where we have linear maps, and the reverse, in the shape of ours.

    Args:
        state_dict: tensors under our names.
        own: ours.
    """
    made = {}
    for name, tensor in state_dict.items():
        wanted = own[name].shape if name in own else tensor.shape
        same = tensor.shape[:2] == wanted[:2] and {tensor.ndim, len(wanted)} == {2, 4}
        ones = (*tensor.shape[2:], *wanted[2:]) == (1, 1)
        made[name] = tensor.reshape(wanted) if same and ones else tensor
    return made
