"""What a mechanism is to the integration: how it attends, and the step of a layer that keeps a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from regard.integrations.transformers.caches import Advance
from regard.integrations.transformers.masks import PackedCall


class MakeStep(Protocol):
    """Makes the step of one layer."""

    def __call__(self, config: Any, layer: int, max_len: int | None = None) -> Advance:
        """From the config of the model's text part, the layer's number, and the tokens to make room for, if known."""


@dataclass(frozen=True)
class InsertedLandmarks:
    """Landmarks that a model was trained with, between the tokens of a text.

    Args:
        block_size: ordinary tokens after which one stands.
        landmark_id: its id.
    """

    block_size: int
    landmark_id: int


@dataclass(frozen=True)
class Mechanism:
    """How a mechanism attends inside a model.

    Args:
        causal: on a packed call of a decoder and the number of its layer; None = there is no such form.
        bidirectional: on queries, keys, values and which keys are real; None = there is no such form.
        square: on queries, keys, values and a boolean square of visible keys; None = such masks are refused.
        step: makes the step of a layer that keeps a state of its own; None = it keeps none.
        inside: on the attention module, queries, keys, values and mask, for what knows more of its model; None = none.
        landmarks: what a text needs between its tokens; None = nothing.
    """

    causal: Callable[[PackedCall, int | None], Tensor] | None = None
    bidirectional: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None = None
    square: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    step: MakeStep | None = None
    inside: Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], Tensor] | None = None
    landmarks: InsertedLandmarks | None = None
