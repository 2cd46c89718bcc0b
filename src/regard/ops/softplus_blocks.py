"""Softplus attention in blocks of queries: the fast path, whose memory grows with the length and not with its square.

Paper: "Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models", Gao and Spratling,
ICML 2025, https://arxiv.org/abs/2501.13428; the operator's reference is in `regard.ops.softplus_attention`.

A block of queries meets all keys that it may see in a workspace that is used again and again. Unlike softmax, the
re-weighting needs a row's sum before it can weigh anything, so the scores of a block are kept until its row is summed.
With u_j = softplus(s_j), S = sum u and m = O S / N, the re-weighted row is

    a_j = t_j^p / sum_k t_k^p,  t_j = max(u_j - m, 0) / (max_k u_k - m),

which is relu(N u_j / S - O)^p, normalised: the factor that makes the largest t equal to 1 cancels, and keeps the power
in range. The backward pass computes a block again, as "FlashAttention" does (Dao et al., NeurIPS 2022,
https://arxiv.org/abs/2205.14135, section 3.1), and keeps nothing of quadratic size:

    dx_j = p t_j^(p-1) (g . v_j - g . y) / (Z (max u - m)),  du_j = dx_j - O / N sum_k dx_k,  ds_j = sigmoid(s_j) du_j,

where g is the gradient of y, Z = sum t^p and x = max(u - m, 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.ops.precision import compute_dtype

BLOCK_ROWS = 64
"""Queries in a block."""
BLOCK_ELEMENTS = 2**18
"""Scores in a workspace, over as many heads as fit, so that a block stays in the processor's cache."""
LARGEST_EXPONENT = 80.0
"""Above it exp overflows in float32, and softplus is computed without it."""
SOFTPLUS_THRESHOLD = 40.0
"""Above it softplus(x) is x, also in float64."""


class Spans(NamedTuple):
    """The keys `first <= j < stop` that each query may see: what causality, padding and packed segments leave."""

    first: Int[Tensor, "#batch queries"]
    stop: Int[Tensor, "#batch queries"]


class _Rows(NamedTuple):
    """What the rows of a call need to know beside scores; a tensor is `(heads, queries, 1)`."""

    share: Tensor
    """O / N: the offset over the number of visible keys."""
    first: Tensor | None
    stop: Tensor | None

    def cut(self, heads: slice, rows: slice) -> _Rows:
        return _Rows(*(None if x is None else x[heads, rows] for x in self))  # type: ignore[arg-type]


class _Form(NamedTuple):
    """What is the same for all rows."""

    past_only: bool
    power: int | None
    bound: float
    """Largest possible absolute score."""


def blocked_softplus_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    counts: Int[Tensor, "#batch queries"],
    spans: Spans | None,
    past_only: bool,
    power: int | None,
    offset_free_rows: int,
    bound: float,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Weights of softplus(q . k), re-weighted or not, times values; one block of queries at a time.

    Args:
        q: queries, scaled.
        k: keys, in the queries' type.
        v: values, in the queries' type or a narrower one.
        counts: number of keys that each query may see.
        spans: which these are; None = all, or with `past_only` those up to the query's own.
        past_only: hide the future; needs as many queries as keys.
        power: exponent of the re-weighting; None = none.
        offset_free_rows: rows that see no more keys than this have the offset 0.
        bound: largest possible absolute score.
    """
    batch, heads, queries = q.shape[:3]

    def per_row(x: Tensor) -> Tensor:
        return x[:, None, :, None].expand(batch, heads, queries, 1).reshape(batch * heads, queries, 1)

    wide = compute_dtype(q)
    share = per_row(torch.where(counts > offset_free_rows, 1 / counts.clamp(min=1).to(wide), 0))
    hidden = (None, None) if spans is None else (per_row(spans.first), per_row(spans.stop))
    flat = [x.reshape(batch * heads, x.shape[2], x.shape[3]) for x in (q, k, v)]
    mixed = _BlockedSoftplus.apply(*flat, share, *hidden, _Form(past_only, power, bound))
    return mixed.view(batch, heads, queries, v.shape[3])


def softplus_attention_macs(queries: int, keys: int, *, head_dim: int, value_dim: int, past_only: bool) -> int:
    """Contraction MACs of the blocked form for one row of the batch and one head."""
    seen = sum((rows.stop - rows.start) * (rows.stop if past_only else keys) for rows in _blocks(queries, BLOCK_ROWS))
    return seen * (head_dim + value_dim)


# --------------------------------------------------------------------------------------------------- blocks


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


class _Workspace:
    """Memory for the scores of one block, used again for every block, in at least float32."""

    def __init__(self, like: Tensor, heads: int, rows: int, columns: int) -> None:
        self.memory = like.new_empty(heads * rows * columns, dtype=compute_dtype(like))

    def take(self, heads: int, rows: int, columns: int) -> Tensor:
        return self.memory[: heads * rows * columns].view(heads, rows, columns)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """`a b^T` for `(heads, rows, width)` and `(heads, columns, width)`."""
        result = self.take(a.shape[0], a.shape[1], b.shape[1])
        if a.dtype != result.dtype:
            return result.copy_(torch.bmm(a, b.transpose(1, 2)))
        return torch.bmm(a, b.transpose(1, 2), out=result)


def _heads_at_once(rows: int, columns: int) -> int:
    return max(1, BLOCK_ELEMENTS // (rows * columns))


def _walk(q: Tensor, k: Tensor, past_only: bool) -> Iterator[tuple[slice, slice, slice]]:
    """Blocks as (heads, queries, keys that they may see)."""
    rows = min(BLOCK_ROWS, q.shape[1])
    for heads in _blocks(q.shape[0], _heads_at_once(rows, k.shape[1])):
        for block in _blocks(q.shape[1], rows):
            yield heads, block, slice(0, block.stop if past_only else k.shape[1])


def _workspaces(q: Tensor, k: Tensor, number: int) -> list[_Workspace]:
    rows = min(BLOCK_ROWS, q.shape[1])
    heads = min(q.shape[0], _heads_at_once(rows, k.shape[1]))
    return [_Workspace(q, heads, rows, k.shape[1]) for _ in range(number)]


def _softplus_into(result: Tensor, scores: Tensor, form: _Form) -> Tensor:
    """softplus(scores), which may be the result's own memory; two passes are faster than PyTorch's one."""
    if form.bound > LARGEST_EXPONENT:
        return result.copy_(torch.nn.functional.softplus(scores, threshold=SOFTPLUS_THRESHOLD))
    return torch.exp(scores, out=result).log1p_()


def _hide(block: Tensor, rows: _Rows, form: _Form) -> None:
    """Zero what a query may not see: after softplus, whose value at 0 is not 0."""
    if form.past_only:
        block[:, :, block.shape[2] - block.shape[1] :].tril_()
    if rows.first is not None and rows.stop is not None:
        column = torch.arange(block.shape[2], device=block.device)
        block.masked_fill_((column < rows.first) | (column >= rows.stop), 0)


def _sharpen(u: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`t` in place of `u`, the offset share that was used, and the factor from `u` to `t`.

    A row in which nothing exceeds the average is uniform: it keeps the offset 0, as short rows do.
    """
    average, peak = u.sum(dim=-1, keepdim=True) * share, u.amax(dim=-1, keepdim=True)
    exceeded = peak > average
    average, share = average * exceeded, share * exceeded
    factor = 1 / torch.where(peak > average, peak - average, 1.0)
    return u.sub_(average).clamp_(min=0).mul_(factor), share, factor


def _raise_into(result: Tensor, base: Tensor, power: int) -> Tensor:
    """`base ** power` by squaring: several times faster than `pow`. A power of 0 is 1 only where the base is not 0."""
    if power < 2:
        return torch.sign(base, out=result) if power == 0 else result.copy_(base)
    first, *others = list(bin(power)[3:])
    torch.mul(base, base, out=result)
    if first == "1":
        result.mul_(base)
    for bit in others:
        result.mul_(result)
        if bit == "1":
            result.mul_(base)
    return result


def _normaliser(weights: Tensor) -> Tensor:
    """Row sums; a row that sees nothing keeps its zeros."""
    total = weights.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, total, 1.0)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == b.dtype:
        total.baddbmm_(a, b)
    else:
        total.add_(torch.bmm(a.to(b.dtype), b))


class _BlockedSoftplus(torch.autograd.Function):
    """Tensors are `(batch * heads, tokens, width)`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        share: Tensor,
        first: Tensor | None,
        stop: Tensor | None,
        form: _Form,
    ) -> Tensor:
        mixed = q.new_empty(q.shape[0], q.shape[1], v.shape[2], dtype=compute_dtype(q))
        scores, powers = _workspaces(q, k, 2)
        known = _Rows(share, first, stop)
        for heads, block, seen in _walk(q, k, form.past_only):
            rows = known.cut(heads, block)
            u = scores.product(q[heads, block], k[heads, seen])
            weights = _softplus_into(u, u, form)
            _hide(weights, rows, form)
            if form.power is not None:
                t, _, _ = _sharpen(weights, rows.share)
                weights = _raise_into(powers.take(*u.shape), t, form.power)
            mixed[heads, block] = torch.bmm(weights.to(v.dtype), v[heads, seen]) / _normaliser(weights)
        ctx.save_for_backward(q, k, v, mixed, share, first, stop)
        ctx.form = form
        return mixed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixed, *rest = ctx.saved_tensors
        form, known, upstream = ctx.form, _Rows(*rest), grad_outputs[0]
        # the mean of g . v_j over a row's weights
        mean = (upstream * mixed).sum(dim=-1, keepdim=True)
        grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=mixed.dtype) for x in (q, k, v))
        first, second, third = _workspaces(q, k, 3)
        for heads, block, seen in _walk(q, k, form.past_only):
            rows, g, at = known.cut(heads, block), upstream[heads, block], mean[heads, block]
            scores = first.product(q[heads, block], k[heads, seen])
            u = _softplus_into(second.take(*scores.shape), scores, form)
            _hide(u, rows, form)
            weights, powers, share, factor = u, None, rows.share, torch.ones_like(at)
            if form.power is not None:
                t, share, factor = _sharpen(u, share)
                powers = _raise_into(third.take(*u.shape), t, form.power - 1)
                weights, factor = t.mul_(powers), factor * form.power
            normaliser = _normaliser(weights)
            _add_product(grad_v[heads, seen], weights.transpose(1, 2), (g / normaliser).to(v.dtype))
            factor = factor / normaliser
            # the weights are no longer needed: their memory takes the gradient
            grad = second.product((g * factor).to(v.dtype), v[heads, seen]).sub_(at * factor)
            if powers is not None:
                grad.mul_(powers)
                grad.sub_(grad.sum(dim=-1, keepdim=True) * share)
            grad.mul_(scores.sigmoid_())
            _hide(grad, rows, form)
            grad_q[heads, block] = torch.bmm(grad.to(k.dtype), k[heads, seen])
            _add_product(grad_k[heads, seen], grad.transpose(1, 2), q[heads, block])
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None, None
