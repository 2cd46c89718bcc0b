"""What visual attention sinks are in a model: maps of phi, shares of visual attention, and what removing them changes.

Paper: "See What You Are Told: Visual Attention Sink in Large Multimodal Models", Kang et al., ICLR 2025,
https://arxiv.org/abs/2503.03321, the analyses that lead to redistribution. Everything here works on tensors: what
enters the layers, and attention weights after the softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.ops.visual_sinks import after_image, sink_share, sink_values

Weights = Float[Tensor, "batch heads queries keys"]
KeyMask = Bool[Tensor, "batch keys"]
Logits = Float[Tensor, "*batch classes"]


# --------------------------------------------------------------------------------------------------- maps and shares


def phi_maps(
    layer_inputs: Sequence[Float[Tensor, "batch tokens dim"]], sink_dims: Sequence[int]
) -> Float[Tensor, "layers batch tokens"]:
    """The phi of every token, layer by layer.

    Args:
        layer_inputs: what enters each layer, before its norm.
        sink_dims: D_sink.

    Raises:
        ValueError: dimensions that the inputs do not have.
    """
    return torch.stack([sink_values(x, sink_dims) for x in layer_inputs])


def sink_shares(
    attentions: Sequence[Weights], image: KeyMask, sinks: Sequence[KeyMask]
) -> Float[Tensor, "layers batch heads"]:
    """The share of visual attention that lies on visual sinks, per layer and head: the mean over text after the image.

    NaN in rows without such text.

    Args:
        attentions: weights of each layer after the softmax.
        image: which keys are image tokens.
        sinks: which keys are sinks, for each layer.

    Raises:
        ValueError: different numbers of layers.
    """
    if len(attentions) != len(sinks):
        raise ValueError(
            f"there are {len(attentions)} layers of attention and {len(sinks)} of sinks: they must be equal"
        )
    found = []
    for attention, marks in zip(attentions, sinks, strict=True):
        rows = after_image(image, queries=attention.shape[2])[:, None]
        shares = torch.where(rows, sink_share(attention, image, marks), 0)
        found.append(shares.sum(dim=-1) / rows.sum(dim=-1))
    return torch.stack(found)


# --------------------------------------------------------------------------------------------------- ablation


def ablate(attention: Weights, tokens: KeyMask, *, renormalise: bool = False) -> Weights:
    """Attention without some keys.

    Args:
        attention: weights after the softmax.
        tokens: the keys whose weights become 0.
        renormalise: rows sum to 1 again, as if the keys' scores were minus infinity; rows that lose all stay 0.
    """
    kept = attention.masked_fill(tokens[:, None, None], 0)
    if not renormalise:
        return kept
    total = kept.sum(dim=-1, keepdim=True)
    return kept / torch.where(total > 0, total, 1)


def random_visual_tokens(image: KeyMask, sinks: KeyMask, *, seed: int) -> KeyMask:
    """In every row as many of the image's other tokens, at random, as it has sinks.

    Args:
        image: which keys are image tokens.
        sinks: which keys are sinks, in the image and elsewhere.
        seed: of the choice.

    Raises:
        ValueError: an image has more sinks than other tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    return _as_many(torch.rand(image.shape, generator=generator).to(image.device), image, sinks)


def top_visual_tokens(attention: Weights, image: KeyMask, sinks: KeyMask) -> KeyMask:
    """In every row as many of the image's other tokens as it has sinks: those that text after the image looks at most.

    Args:
        attention: weights after the softmax; heads and queries are averaged.
        image: which keys are image tokens.
        sinks: which keys are sinks, in the image and elsewhere.

    Raises:
        ValueError: an image has more sinks than other tokens.
    """
    rows = after_image(image, queries=attention.shape[2])
    return _as_many(torch.where(rows[:, None, :, None], attention, 0).sum(dim=(1, 2)), image, sinks)


def _as_many(order: Float[Tensor, "batch keys"], image: KeyMask, sinks: KeyMask) -> KeyMask:
    """The other tokens that come first in descending `order`, as many as sinks."""
    others = image & ~sinks
    wanted, there = (image & sinks).sum(dim=1, keepdim=True), others.sum(dim=1, keepdim=True)
    short = (wanted > there)[:, 0].nonzero()
    if len(short):
        row = int(short[0])
        raise ValueError(
            f"row {row} has {int(wanted[row])} visual sinks and {int(there[row])} other image tokens: too few"
        )
    ranks = torch.where(others, order, -torch.inf).argsort(dim=1, descending=True).argsort(dim=1)
    return (ranks < wanted) & others


@dataclass(frozen=True)
class LogitChange:
    """How far two sets of logits are apart.

    Args:
        mean_abs: mean absolute difference.
        divergence: mean KL divergence of the new from the old distribution, in nats.
        flipped: share of the positions whose largest logit is another one.
    """

    mean_abs: float
    divergence: float
    flipped: float


def logit_change(before: Logits, after: Logits) -> LogitChange:
    """How far `after` is from `before`.

    Raises:
        ValueError: different shapes.
    """
    if before.shape != after.shape:
        raise ValueError(f"logits have shapes {tuple(before.shape)} and {tuple(after.shape)}: they must be equal")
    old, new = (logits.detach().double() for logits in (before, after))
    log_old, log_new = old.log_softmax(dim=-1), new.log_softmax(dim=-1)
    return LogitChange(
        mean_abs=float((new - old).abs().mean()),
        divergence=float((log_old.exp() * (log_old - log_new)).sum(dim=-1).mean()),
        flipped=float((new.argmax(dim=-1) != old.argmax(dim=-1)).double().mean()),
    )


@torch.no_grad()
def ablation_changes(
    logits: Callable[[KeyMask | None], Logits], choices: Mapping[str, KeyMask]
) -> dict[str, LogitChange]:
    """What removing each choice of keys changes in a model's output.

    Args:
        logits: the model's, when attention to the given keys is removed; None = to none.
        choices: keys by name, such as the sinks and `random_visual_tokens`.
    """
    before = logits(None)
    return {name: logit_change(before, logits(tokens)) for name, tokens in choices.items()}
