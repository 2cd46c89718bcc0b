"""Softplus attention (LSSA) and its re-weighted form (LSSAR): the plain reference and the fast path.

Paper: "Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models", Gao and Spratling,
ICML 2025, https://arxiv.org/abs/2501.13428. The authors' repository is not obtainable; compared with a third party's
On-Point-RND/transformer-architecture-generalization@6d3fc68c, `models/lssa.py` and `models/lssar.py`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.heads import repeat_heads
from regard.ops.precision import compute_dtype, product_dtype, without_autocast
from regard.ops.softplus_blocks import SOFTPLUS_THRESHOLD, Spans, blocked_softplus_attention
from regard.ops.visibility import run_starts

Phi = Literal["softplus", "exp", "relu", "sigmoid", "squared_relu"]
PHIS: tuple[Phi, ...] = ("softplus", "exp", "relu", "sigmoid", "squared_relu")
Scale = Literal["log_length", "inverse_sqrt"]
SCALES: tuple[Scale, ...] = ("log_length", "inverse_sqrt")

REFERENCE_EPS = 1e-8
"""What the compared code adds to the sums that it divides by."""
OFFSET_FREE_ROWS = 3

Visible = Bool[Tensor, "#batch #heads #queries keys"]
VisibleKeys = Literal["past", "all"] | Spans


def unit_length(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Vectors scaled to length 1, x / ||x||_2, in at least float32; zero stays zero, with a finite gradient."""
    wide = x.to(compute_dtype(x))
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide / torch.where(norm > 0, norm, 1.0)


@without_autocast
def softplus_weights(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    *,
    visible: Visible | None,
    power: int | None = None,
    offset_free_rows: int = OFFSET_FREE_ROWS,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    eps: float | None = None,
    phi: Phi = "softplus",
    l1: bool = True,
    scale: Scale = "log_length",
    qk_norm: bool = True,
) -> Float[Tensor, "batch heads queries keys"]:
    """The attention weights as the paper writes them, with each of its parts to be taken away or replaced.

    With unit vectors q, k and N_i the number of keys that query i may see:

        A_ij = softplus(ln d ln N_i q_i . k_j) over the visible keys, divided by its row sum (LSSA);
        A_ij <- relu(N_i A_ij - O_i)^p, divided by its row sum (LSSAR).

    O_i is 1, and 0 in rows that see at most `offset_free_rows` keys: the first row would else be empty.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries'. With a head_dim of 1, ln d = 0: all weights are equal.
        visible: which key each query may see; None = all.
        power: p, a whole number; None = LSSA, without re-weighting.
        offset_free_rows: rows that see no more keys than this have the offset 0.
        bias: added to the scores.
        eps: added to the row sums, as the compared code does; rows of nearly uniform weights then sum to less than 1
            (0 in the limit), and N^p overflows where one key of many takes all. None = stable: the powers are taken
            of numbers divided by their row's largest, and every row with a visible key sums to 1.
        phi: what makes scores positive.
        l1: divide by the row sum before the re-weighting; without it, LSSA's rows do not sum to 1.
        scale: "log_length", ln d ln N_i, or "inverse_sqrt", 1 / sqrt(d).
        qk_norm: scale queries and keys to length 1; False where they are, or for scores of any size.

    Returns:
        Weights in at least float32; 0 in rows that see nothing.

    Raises:
        ValueError: tensors of integers, shapes that do not fit, a power below 1, or an unknown option.
    """
    _check(q, k, k, power, offset_free_rows)
    _check_options(phi, scale, eps)
    dtype = compute_dtype(q)
    q, k = (unit_length(x) if qk_norm else x.to(dtype) for x in (q, repeat_heads(k, q.shape[1])))
    counts = _counts(q, k, visible)
    factor = math.log(q.shape[-1]) * counts.log() if scale == "log_length" else q.shape[-1] ** -0.5
    # scaled after the product, as in the equation: small differences of weights feel the order of rounding
    scores = (q @ k.transpose(2, 3)).mul_(factor)
    if bias is not None:
        scores = scores + bias.to(dtype)
    weights = _positive(scores, phi, visible, shifted=l1 and eps is None)
    # hidden after phi, whose value at a score of 0 need not be 0
    weights = weights if visible is None else weights * visible.to(dtype)
    weights = _divide(weights, eps) if l1 else weights
    if power is None:
        return weights
    return _reweight(weights, counts, power, offset_free_rows, eps=eps, l1=l1)


def softplus_attention_reference(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    visible: Visible | None,
    power: int | None = None,
    offset_free_rows: int = OFFSET_FREE_ROWS,
    eps: float | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """The equation as written: weights times values."""
    _check(q, k, v, power, offset_free_rows)
    weights = softplus_weights(q, k, visible=visible, power=power, offset_free_rows=offset_free_rows, eps=eps)
    return (weights @ repeat_heads(v, q.shape[1]).to(weights.dtype)).to(q.dtype)


@without_autocast
def softplus_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    visible: VisibleKeys,
    power: int | None = None,
    offset_free_rows: int = OFFSET_FREE_ROWS,
    qk_norm: bool = True,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Stable LSSA or LSSAR by the blocked path, in memory that grows with the length alone.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries' (grouped-query attention).
        v: values.
        visible: the keys that a query may see, whose number scales its scores: "past" (causal; as many queries as
            keys), "all", or a span of keys per query.
        power: p of the re-weighting, a whole number; None = LSSA, without re-weighting.
        offset_free_rows: rows that see no more keys than this have the offset 0.
        qk_norm: scale queries and keys to length 1; False only where they are.

    Returns:
        In the type of `v`; 0 in rows that see nothing.

    Raises:
        ValueError: tensors of integers, shapes that do not fit, a power below 1, or no statement of the visible keys.
    """
    _check(q, k, v, power, offset_free_rows)
    queries, keys = q.shape[2], k.shape[2]
    if not isinstance(visible, Spans) and visible not in ("past", "all"):
        raise ValueError(
            f"visible must be 'past', 'all' or Spans: scores grow with the number of keys, got {visible!r}"
        )
    if visible == "past" and queries != keys:
        raise ValueError(f"visible='past' needs as many queries as keys, got {queries} and {keys}: give Spans")
    counts = _span_counts(visible, queries, keys, q.device)
    wide = compute_dtype(q)
    lengths = counts.clamp(min=1).to(wide).log()[:, None, :, None]
    scaled = (unit_length(q) if qk_norm else q.to(wide)) * (math.log(q.shape[-1]) * lengths)
    dtype = product_dtype(v)
    # a power makes a score's relative error that many times as large: bfloat16's would reach the first digit
    score_dtype = wide if (power or 1) > 1 else dtype
    mixed = blocked_softplus_attention(
        scaled.to(score_dtype),
        repeat_heads((unit_length(k) if qk_norm else k).to(score_dtype), q.shape[1]),
        repeat_heads(v.to(dtype), q.shape[1]),
        counts=counts,
        spans=visible if isinstance(visible, Spans) else None,
        past_only=visible == "past",
        power=power,
        offset_free_rows=offset_free_rows,
        bound=math.log(q.shape[-1]) * math.log(keys),
    )
    return mixed.to(v.dtype)


def key_spans(
    queries: int,
    keys: int,
    *,
    causal: bool,
    mask: Bool[Tensor, "batch keys"] | None = None,
    segments: Int[Tensor, "batch tokens"] | None = None,
    device: torch.device,
) -> VisibleKeys:
    """The keys that each query may see, where these stand in one row next to each other.

    Args:
        queries: number of queries.
        keys: number of keys; with `causal` or `segments`, as many.
        causal: hide the future.
        mask: True on the prefix of each row that is real.
        segments: packed sequences.
        device: where to build the spans.
    """
    if segments is None and (causal or mask is None):
        # padding lies to the right of every real token, so causality already hides it
        return "past" if causal else "all"
    place = torch.arange(queries, device=device)[None]
    first, stop = torch.zeros_like(place), torch.full_like(place, keys)
    if segments is not None:
        first = run_starts(segments)
        # read from its end, a run ends where it starts
        stop = keys - run_starts(segments.flip(1)).flip(1)
    if causal:
        stop = place + 1
    elif mask is not None:
        stop = torch.minimum(stop, mask.sum(dim=1, keepdim=True))
    return Spans(first, stop)


# --------------------------------------------------------------------------------------------------- parts


def whole_power(x: Tensor, power: int) -> Tensor:
    """`x ** power` by squaring: several times faster than `pow` on a CPU."""
    result = x
    for bit in bin(power)[3:]:
        result = result.square().mul_(x) if bit == "1" else result.square()
    return result


def _positive(scores: Tensor, phi: Phi, visible: Visible | None, *, shifted: bool) -> Tensor:
    if phi == "softplus":
        return torch.nn.functional.softplus(scores, threshold=SOFTPLUS_THRESHOLD)
    if phi == "sigmoid":
        return scores.sigmoid()
    if phi == "exp":
        # a row's largest score cancels in the normalisation
        seen = scores if visible is None else scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        return (seen - seen.amax(dim=-1, keepdim=True).detach()).exp() if shifted else scores.exp()
    positive = scores.relu()
    return positive if phi == "relu" else positive.square()


def _divide(weights: Tensor, eps: float | None) -> Tensor:
    total = weights.sum(dim=-1, keepdim=True)
    return weights / (torch.where(total > 0, total, 1.0) if eps is None else total + eps)


def _reweight(
    weights: Tensor, counts: Tensor, power: int, offset_free_rows: int, *, eps: float | None, l1: bool
) -> Tensor:
    offset = torch.where(counts > offset_free_rows, 1.0, 0.0).to(weights.dtype)
    if eps is not None:
        return _divide(whole_power((counts * weights - offset).relu(), power), eps)
    peak = counts * weights.detach().amax(dim=-1, keepdim=True)
    if l1:
        # a row in which nothing exceeds the average is uniform: it keeps the offset 0, as short rows do
        offset = offset * (peak > offset)
    largest = torch.where(peak > offset, peak - offset, 1.0)
    return _divide(whole_power((counts / largest * weights).sub_(offset / largest).relu_(), power), None)


def _counts(q: Tensor, k: Tensor, visible: Visible | None) -> Tensor:
    """Number of keys that each query may see, at least 1, as numbers that broadcast over scores."""
    if visible is None:
        return q.new_full((1, 1, q.shape[2], 1), k.shape[2])
    return visible.sum(dim=-1, keepdim=True).clamp(min=1).to(q.dtype)


def _span_counts(visible: VisibleKeys, queries: int, keys: int, device: torch.device) -> Tensor:
    if isinstance(visible, Spans):
        return (visible.stop - visible.first).clamp(min=0)
    if visible == "past":
        return torch.arange(1, queries + 1, device=device)[None]
    return torch.full((1, queries), keys, device=device)


def check_power(power: int | None, offset_free_rows: int) -> None:
    """Refuse a re-weighting that is not defined.

    Raises:
        ValueError: a power that is no whole number of at least 1, or a negative number of rows.
    """
    if power is not None and (power < 1 or power != int(power)):
        raise ValueError(f"power must be a whole number of at least 1, got {power}")
    if offset_free_rows < 0:
        raise ValueError(f"offset_free_rows must not be negative, got {offset_free_rows}")


def _check(q: Tensor, k: Tensor, v: Tensor, power: int | None, offset_free_rows: int) -> None:
    check_power(power, offset_free_rows)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q has head_dim {q.shape[-1]} and k has {k.shape[-1]}: they must be equal")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        raise ValueError(
            f"(batch, heads, keys) is {tuple(k.shape[:3])} for k and {tuple(v.shape[:3])} for v, "
            f"with batch {q.shape[0]} for q: they must be equal"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"the heads of q must be a multiple of those of k, got {q.shape[1]} and {k.shape[1]}")


def _check_options(phi: str, scale: str, eps: float | None) -> None:
    if phi not in PHIS:
        raise ValueError(f"phi must be one of {', '.join(PHIS)}, got {phi!r}")
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if eps is not None and eps <= 0:
        raise ValueError(f"eps must be positive, or None for the stable form, got {eps}")
