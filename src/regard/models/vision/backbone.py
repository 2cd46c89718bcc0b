"""What all hierarchical image networks share: maps of every stage, a classifier on the last, and recomputation."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import Model
from regard.layers.residual_blocks import recomputed

Images = Float[Tensor, "batch in_channels y x"]
Maps = Float[Tensor, "batch channels y x"]


class Backbone(Model):
    """A network whose stages give ever coarser maps; a subclass is final.

    It sets `stage_channels` and `stage_strides` (pixels of the image per position), finest first, and `head`, the
    linear map from the pooled last stage to the classes.

    Args:
        config: its sizes; has `in_channels`, `num_classes` and `checkpointing`.
    """

    task: ClassVar[str] = "classification"
    stage_channels: tuple[int, ...]
    stage_strides: tuple[int, ...]
    head: nn.Module

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def features(self, images: Images) -> tuple[Maps, ...]:
        """The output of every stage, finest first: what a detector builds upon.

        Raises:
            ValueError: images that are not `(batch, in_channels, y, x)`.
        """

    @abstractmethod
    def pool(self, last: Maps) -> Float[Tensor, "batch channels"]:
        """What the classifier sees of the last stage's map."""

    def forward(self, images: Images) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes.

        Raises:
            ValueError: images that are not `(batch, in_channels, y, x)`.
        """
        return self.head(self.pool(self.features(images)[-1]))

    def check_images(self, images: Tensor) -> None:
        """Refuse what is no batch of images.

        Raises:
            ValueError: images that are not `(batch, in_channels, y, x)`, or empty ones.
        """
        channels = self.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < 1:
            raise ValueError(f"images must have shape (batch, {channels}, y, x), got {tuple(images.shape)}")

    def run(self, block: nn.Module, x: Maps) -> Maps:
        """`block(x)`, whose activations are computed again for the gradient where the config says so."""
        if self.config.checkpointing and self.training and torch.is_grad_enabled():
            return recomputed(block, x)
        return block(x)


def check_stages(config: Any, *per_stage: str) -> None:
    """Refuse a config whose stages disagree in number or have sizes that are not positive.

    Args:
        config: has `in_channels`, `num_classes`, and the fields of `per_stage`.
        per_stage: fields with a number per stage.

    Raises:
        ValueError: the field, named.
    """
    for name in ("in_channels", "num_classes"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    stages = len(getattr(config, per_stage[0]))
    for name in per_stage:
        values = getattr(config, name)
        if len(values) != stages or not values or min(values) < 1:
            raise ValueError(f"{name} must have a positive number for each of the {stages} stages, got {values}")
