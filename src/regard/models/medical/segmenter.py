"""What all segmenters share: a number per class and position, from images or volumes of any size that fits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import Model
from regard.layers.residual_blocks import recomputed

Features = Float[Tensor, "batch channels *space"]
Scores = Float[Tensor, "batch classes *space"]


class Segmenter(Model):
    """A network from `(batch, in_channels, *space)` to scores `(batch, num_classes, *space)`; a subclass is final.

    Whether the scores are of exclusive classes (a softmax, the background first) or of regions on their own (a sigmoid
    each) is the task's choice, not the network's.

    Args:
        config: its sizes; has `in_channels`, `num_classes` and `checkpointing`.
    """

    task: ClassVar[str] = "segmentation"
    spatial_dims: ClassVar[int]
    """2 for images, 3 for volumes."""
    task_settings: ClassVar[Mapping[str, str]] = {}
    """Settings of the task that suit the network, as texts; the user's own come before them."""
    recipe: ClassVar[Mapping[str, Any]] = {}
    """Fields of the recipe that suit the network; the user's own come before them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        if config.in_channels < 1 or config.num_classes < 1:
            raise ValueError(
                "in_channels and num_classes must be positive, got "
                f"in_channels={config.in_channels} and num_classes={config.num_classes}"
            )
        self.config = config

    @property
    @abstractmethod
    def stride(self) -> int:
        """Every side of the input must be a multiple of this."""

    @property
    def smallest(self) -> int:
        """The shortest side that the network takes."""
        return self.stride

    @property
    def fewest_rows(self) -> int:
        """The smallest batch that the network can be trained on."""
        return 1

    @abstractmethod
    def outputs(self, x: Features) -> tuple[Scores, ...]:
        """Scores of the classes at every level that is supervised, the finest first.

        Raises:
            ValueError: shapes that do not fit.
        """

    def forward(self, x: Features) -> Scores:
        """Scores of the classes at every position.

        Raises:
            ValueError: shapes that do not fit.
        """
        return self.outputs(x)[0]

    def run(self, part: nn.Module, x: Tensor) -> Tensor:
        """`part(x)`, whose activations are computed again for the gradient where the config says so."""
        if self.config.checkpointing and self.training and torch.is_grad_enabled():
            return recomputed(part, x)
        return part(x)

    def check_input(self, x: Tensor) -> None:
        """Refuse what does not fit the network.

        Raises:
            ValueError: another number of axes or channels, or sides that cannot be halved often enough.
        """
        if x.ndim != 2 + self.spatial_dims or x.shape[1] != self.config.in_channels:
            axes = "y, x" if self.spatial_dims == 2 else "three axes of space"
            raise ValueError(
                f"the input must have shape (batch, {self.config.in_channels}, {axes}), got {tuple(x.shape)}"
            )
        for side in x.shape[2:]:
            if side % self.stride or side < self.smallest:
                raise ValueError(
                    f"every side must be a multiple of {self.stride} and at least {self.smallest}, got "
                    f"{tuple(x.shape[2:])}"
                )
