"""Which token may see which in one sequence `[source ; target]`: the source sees itself, the target both.

Used by language models with a bidirectional prefix and by PALM ("Decoder-Only or Encoder-Decoder? Interpreting Language
Model as a Regularized Encoder-Decoder", Fu et al., 2023, https://arxiv.org/abs/2304.04052).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def prefix_visible(
    source: int,
    target: int,
    *,
    source_mask: Bool[Tensor, "batch source"] | None = None,
    causal_source: bool = False,
    device: torch.device,
) -> Bool[Tensor, "#batch 1 tokens tokens"]:
    """The map of visible keys for `source + target` tokens, the source first.

    A source token sees the whole source (with `causal_source`: no later source token) and never the target; a target
    token sees the whole source and no later target token.

    Args:
        source: number of source tokens, padding included.
        target: number of target tokens.
        source_mask: True = real source token, per row; padding is seen by nobody.
        causal_source: hide later source tokens from earlier ones.
        device: where to build the map.

    Raises:
        ValueError: no source token.
    """
    if source < 1:
        raise ValueError(f"a prefix needs at least 1 source token, got {source}")
    places = torch.arange(source + target, device=device)
    visible = places[None, :] <= places[:, None]
    if not causal_source:
        visible = visible | (places[None, :] < source) & (places[:, None] < source)
    visible = visible[None, None]
    if source_mask is None:
        return visible
    real = torch.nn.functional.pad(source_mask, (0, target), value=True)
    return visible & real[:, None, None, :]
