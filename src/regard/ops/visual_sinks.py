"""Visual attention sinks: tokens with massive activations in fixed dimensions, and redistributing what they are given.

Paper: "See What You Are Told: Visual Attention Sink in Large Multimodal Models", Kang et al., ICLR 2025,
https://arxiv.org/abs/2503.03321. With phi(t) = max over sink dimensions d of |h_td / sqrt(mean_c h_tc^2 + eps)|, sinks
are the tokens with phi > tau; in heads that look at the image elsewhere than at sinks, a share 1 - p of what sinks are
given goes to the image's other tokens, in proportion to what these have.
Compared with seilk/VisAttnSink@98e62d6c, `src/logic/logic.py:DimProspector, HeadFork, VARProcessor`.
Different from the code: every row of a batch has sinks of its own (there, all rows share those of any); a head whose
image tokens are all sinks is left alone (there, 0 / 0); nothing is kept in class attributes. Its `rho` is kept: the
largest share of a head's visual attention that sinks may have; as the least share of other tokens it is 1 - rho.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast

NORM_EPS = 1e-6
SHARE_EPS = 1e-6
"""Added to the attention of every image token in the denominator of a share."""
TAU, TAU_WIDTH = 20.0, 4096
"""The threshold for models of this width and wider."""
KNOWN_SINK_DIMS = {"llama-2-7b": (1415, 2533), "llama-2-13b": (2100, 4743)}
"""Sink dimensions that the compared code lists, by language model."""
NORMALISED = 0.02
"""How far a row's sum may be from 1: weights may have been rounded to bfloat16."""

Weights = Float[Tensor, "batch heads queries keys"]
KeyMask = Bool[Tensor, "batch keys"]


# --------------------------------------------------------------------------------------------------- sink tokens


def tau_for_width(dim: int) -> float:
    """20 from width 4,096 on; below it the same fraction of sqrt(dim), which no phi exceeds."""
    return TAU * min(1.0, math.sqrt(dim / TAU_WIDTH))


def check_tau(tau: float, dim: int) -> None:
    """Refuse a threshold that no token, or every token, exceeds.

    Raises:
        ValueError: `tau` is negative, or at least sqrt(dim).
    """
    if not 0 <= tau < math.sqrt(dim):
        raise ValueError(
            f"tau must be at least 0 and below sqrt(dim={dim}) = {math.sqrt(dim):.4g}, which no phi exceeds, got {tau}"
        )


def check_sink_dims(sink_dims: Sequence[int], dim: int) -> None:
    """Refuse sink dimensions that a width does not have.

    Raises:
        ValueError: none is given, one is given twice, or one is not below `dim`.
    """
    wrong = [number for number in sink_dims if not 0 <= number < dim]
    if wrong:
        raise ValueError(f"sink_dims must lie between 0 and dim - 1 = {dim - 1}, got {wrong[0]}")
    if not sink_dims or len(set(sink_dims)) != len(sink_dims):
        raise ValueError(f"sink_dims must name at least one dimension, each once, got {tuple(sink_dims)}")


@without_autocast
def activation_sizes(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """|x / sqrt(mean(x^2) + eps)|, in at least float32."""
    wide = x.to(compute_dtype(x))
    return wide.abs() * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + NORM_EPS)


@without_autocast
def sink_values(x: Float[Tensor, "*batch dim"], sink_dims: Sequence[int]) -> Float[Tensor, "*batch"]:
    """phi: the largest of a token's `activation_sizes` in the sink dimensions; at most sqrt(dim).

    Args:
        x: what enters a layer, before the layer's norm.
        sink_dims: D_sink.

    Raises:
        ValueError: dimensions that `x` does not have.
    """
    check_sink_dims(sink_dims, x.shape[-1])
    wide = x.to(compute_dtype(x))
    # unlike the mean of squares this writes nothing as large as x
    mean_square = torch.linalg.vector_norm(wide, dim=-1).square() / x.shape[-1]
    largest = torch.stack([wide[..., number].abs() for number in sink_dims]).amax(dim=0)
    return largest * torch.rsqrt(mean_square + NORM_EPS)


def sink_tokens(
    x: Float[Tensor, "batch tokens dim"], sink_dims: Sequence[int], *, tau: float
) -> Bool[Tensor, "batch tokens"]:
    """Which tokens are sinks: phi > tau. Arguments as for `sink_values`; `tau`: see `tau_for_width`."""
    return sink_values(x, sink_dims) > tau


def detect_sink_dims(
    first_token: Float[Tensor, "layers dim"], *, tau: float | None = None, count: int = 2
) -> tuple[int, ...]:
    """A model's sink dimensions, from its first token, which is a sink in every prompt.

    Args:
        first_token: what enters each of the `middle_layers` at the first token.
        tau: what the mean over layers of a dimension's size must exceed; None = `tau_for_width`.
        count: at most so many dimensions, the largest.

    Returns:
        The dimensions, ascending.

    Raises:
        ValueError: no dimension exceeds `tau`, or `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    threshold = tau_for_width(first_token.shape[-1]) if tau is None else tau
    sizes = activation_sizes(first_token).mean(dim=0)
    largest, places = sizes.topk(min(count, len(sizes)))
    found = places[largest > threshold].tolist()
    if not found:
        raise ValueError(
            f"no dimension of the first token exceeds tau={threshold:.4g}: "
            f"the largest is {float(largest[0]):.4g}, in dimension {int(places[0])}"
        )
    return tuple(sorted(found))


def middle_layers(num_layers: int) -> range:
    """The middle half of the layers, where massive activations stay the same; at least one layer."""
    first = num_layers // 4
    return range(first, max(first + 1, num_layers - first))


def active_layers(num_layers: int, *, begin: int = 2, except_last: bool = True) -> range:
    """The layers in which attention is redistributed.

    Args:
        num_layers: of the model.
        begin: the first of them; before it there are no massive activations yet.
        except_last: leave the last layer alone, as the compared code's option says (the code itself does not).
    """
    return range(begin, num_layers - int(except_last))


# --------------------------------------------------------------------------------------------------- redistribution


@dataclass(frozen=True, kw_only=True)
class SinkRule:
    """Which heads give away attention, and how much.

    Args:
        p: what sinks keep of their attention, in [0, 1]; 1 changes nothing.
        rho: the largest share of a head's visual attention that visual sinks may have, in [0, 1].
        summ: the least attention that a head must give to the image, in [0, 1].

    Raises:
        ValueError: a number outside [0, 1].
    """

    p: float = 0.6
    rho: float = 0.5
    summ: float = 0.2

    def __post_init__(self) -> None:
        for name in ("p", "rho", "summ"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


class Redistributed(NamedTuple):
    """Attention after redistribution, and the rows that were changed."""

    attention: Weights
    selected: Bool[Tensor, "batch heads queries"]


def image_end(image: KeyMask) -> Int[Tensor, " batch"]:
    """The position after the last image token of every row, 0 where there is none."""
    places = torch.arange(1, image.shape[1] + 1, device=image.device)
    return torch.where(image, places, 0).amax(dim=1)


def after_image(image: KeyMask, *, queries: int) -> Bool[Tensor, "batch queries"]:
    """Which queries are text after the image; the last query stands at the last key. False without an image."""
    end = image_end(image)[:, None]
    places = torch.arange(image.shape[1] - queries, image.shape[1], device=image.device)
    return (places >= end) & (end > 0)


def visual_attention(attention: Weights, image: KeyMask) -> Float[Tensor, "batch heads queries"]:
    """V: what each query gives to the image."""
    return torch.where(image[:, None, None], attention, 0).sum(dim=-1)


def sink_share(attention: Weights, image: KeyMask, sinks: KeyMask) -> Float[Tensor, "batch heads queries"]:
    """The share of the visual attention that visual sinks have.

    Args:
        attention: weights after the softmax.
        image: which keys are image tokens.
        sinks: which keys are sinks, in the image and elsewhere.
    """
    floor = SHARE_EPS * image.sum(dim=1)[:, None, None]
    return visual_attention(attention, image & sinks) / (visual_attention(attention, image) + floor)


def image_centric(
    attention: Weights, image: KeyMask, sinks: KeyMask, rule: SinkRule
) -> Bool[Tensor, "batch heads queries"]:
    """Where the image has sinks, is given at least `summ`, and at most `rho` of that lies on its sinks.

    Arguments as for `sink_share`.
    """
    has_sinks = (image & sinks).any(dim=1)[:, None, None]
    has_others = visual_attention(attention, image & ~sinks) > 0
    looks = visual_attention(attention, image) >= rule.summ
    return (sink_share(attention, image, sinks) <= rule.rho) & looks & has_sinks & has_others


@without_autocast
def redistribute(
    attention: Weights,
    image: KeyMask,
    sinks: KeyMask,
    rule: SinkRule,
    *,
    rows: Bool[Tensor, "batch queries"] | None = None,
) -> Redistributed:
    """Take (1 - p) of what sinks have, in the image and in the text, and give it to the image's other tokens.

    The equation as written, on whole attention matrices; `regard.ops.redistributed_attention` needs none.

    Args:
        attention: weights after the softmax; rows sum to 1, or to 0 where a query sees nothing.
        image: which keys are image tokens.
        sinks: which keys are sinks.
        rule: which heads, and how much.
        rows: the queries that may be changed, such as `after_image`; None = all.

    Raises:
        ValueError: shapes that do not fit, or rows that sum to something else.
    """
    _check(attention, image, sinks, rows)
    wide = attention.to(compute_dtype(attention))
    selected = image_centric(wide, image, sinks, rule)
    if rows is not None:
        selected = selected & rows[:, None]
    budget = (1 - rule.p) * visual_attention(wide, sinks)
    others = torch.where((image & ~sinks)[:, None, None], wide, 0)
    total = torch.where(selected, others.sum(dim=-1), 1)
    changed = torch.where(sinks[:, None, None], rule.p * wide, wide) + (budget / total)[..., None] * others
    return Redistributed(torch.where(selected[..., None], changed, wide).to(attention.dtype), selected)


def _check(attention: Tensor, image: Tensor, sinks: Tensor, rows: Tensor | None) -> None:
    batch, _, queries, keys = attention.shape
    given = {"image": (image, (batch, keys)), "sinks": (sinks, (batch, keys))}
    if rows is not None:
        given["rows"] = (rows, (batch, queries))
    for name, (mask, wanted) in given.items():
        if tuple(mask.shape) != wanted or mask.dtype != torch.bool:
            raise ValueError(f"{name} must be bool of shape {wanted}, got {mask.dtype} of shape {tuple(mask.shape)}")
    if torch.compiler.is_compiling() or attention.device.type == "meta":
        return
    sums = attention.detach().to(compute_dtype(attention)).sum(dim=-1)
    wrong = sums[((sums - 1).abs() > NORMALISED) & (sums != 0)]
    if len(wrong):
        raise ValueError(f"attention must be normalised: rows must sum to 1, one sums to {float(wrong[0]):.6g}")
