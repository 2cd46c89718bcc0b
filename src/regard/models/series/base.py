"""What networks on series share: a config with a causal encoder's sizes, and the paper that compares mixers in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from regard.contract import Model, load_strictly
from regard.layers.encoder_block import Encoder
from regard.metadata import Paper

AAREN_SETTINGS = Paper(
    title="Attention as an RNN",
    authors="Feng et al.",
    venue="arXiv",
    year=2024,
    url="https://arxiv.org/abs/2405.13956",
    where="section 4",
)


@dataclass(frozen=True, kw_only=True)
class SeriesConfig:
    """The sizes of a causal encoder.

    Args:
        dim: width.
        num_layers: number of blocks.
        num_heads: heads of every mixer.
        hidden: width inside the perceptrons.
        dropout: probability of dropping a number of the encoder's input and of every branch.
        mixer: registered name of a causal sequence mixer; "softmax" makes it a Transformer.
        mixer_options: further constructor arguments of the mixer.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.
    """

    dim: int = 512
    num_layers: int = 2
    num_heads: int = 8
    hidden: int = 2048
    dropout: float = 0.1
    mixer: str = "aaren"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    checkpointing: bool = False

    def make_encoder(self, *, positions: Literal["none", "sinusoidal"]) -> Encoder:
        """A causal encoder of these sizes.

        Raises:
            UnknownSystemError: no such mixer.
            ValueError: a mixer without a causal form, or a size that is not positive or that the mixer refuses.
        """
        return Encoder(
            self.mixer,
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            hidden=self.hidden,
            causal=True,
            positions=positions,
            dropout=self.dropout,
            mixer_options=self.mixer_options,
            checkpointing=self.checkpointing,
        )


def check_sizes(config: SeriesConfig, *names: str) -> None:
    """Refuse fields that are not positive.

    Raises:
        ValueError: the first such field, named.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")


class SeriesModel(Model):
    """A network of ours on series: it has no authors' checkpoint, and loads its own layout."""

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load our own layout, strictly: the authors published no code.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, state_dict)
