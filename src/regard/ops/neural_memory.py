"""A memory that learns while it reads: the recurrence token by token, and in chunks.

Paper: "Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663,
sections 3.1 and 3.2. With the surprise u_t, the gradient of ||M(k_t) - v_t||^2 by the memory's weights,

    S_t = eta_t S_{t-1} - theta_t u_t          (momentum: past surprise)
    W_t = (1 - alpha_t) W_{t-1} + S_t          (forgetting)
    y_t = M_{W_t}(q_t)

In chunks, all gradients of a chunk are taken at the weights at its start (a chunk of one token is the recurrence). Then
W_t and S_t are linear in what the chunk begins with and in its gradients, and those are outer products:

    W_t = keep_t W + carry_t S - sum_{i <= t} A_ti x_i^T delta_i
    x W_t = keep_t (x W) + carry_t (x S) - sum_{i <= t} A_ti (x . x_i) delta_i

so reading with different weights at every token is the product of two masked squares per layer, and no token's weights
are ever built: `A = B E diag(theta)` with B the products of 1 - alpha and E those of eta between two tokens. One loop
runs over chunks; time is linear in the number of tokens, and what is kept per chunk is one set of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from regard.ops.memory_network import Weights, read_memory, run_memory, surprise
from regard.ops.precision import compute_dtype, without_autocast

Tokens = Float[Tensor, "batch heads tokens width"]


class Rates(NamedTuple):
    """What each token does to the memory; rates are given by their logarithms, which never overflow."""

    step: Float[Tensor, "batch heads tokens"]
    """theta."""
    log_keep: Float[Tensor, "batch heads tokens"] | None = None
    """log(1 - alpha); None = nothing is forgotten."""
    log_momentum: Float[Tensor, "batch heads tokens"] | None = None
    """log eta; None = no momentum: S_t is the token's own surprise."""
    real: Bool[Tensor, "batch tokens"] | None = None
    """Tokens that count; time stands still at the others."""


class Memory(NamedTuple):
    """What is carried from token to token."""

    start: Weights
    """Weights at the start of the chunk that is under way: where gradients are taken."""
    weights: Weights
    """The newest weights; they equal `start` between two chunks."""
    momentum: Weights
    """S; empty without momentum."""


class _Coefficients(NamedTuple):
    """Of one chunk, with (batch, heads) as one axis."""

    mix: Float[Tensor, "rows chunk chunk"]
    """B E, which meets the steps in the gradients."""
    step: Float[Tensor, "rows chunk 1"]
    keep: Float[Tensor, "rows chunk 1"] | None
    carry: Float[Tensor, "rows chunk 1"] | None
    into_momentum: Float[Tensor, "rows chunk 1"] | None
    momentum: Float[Tensor, "rows 1 1"] | None


def running_products(logs: Float[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch tokens tokens"]:
    """At [t, i] the exponential of the sum of `logs` from after i up to t, for i <= t; 0 above the diagonal."""
    sums = logs.cumsum(dim=-1)
    hidden = torch.ones(logs.shape[-1], logs.shape[-1], dtype=torch.bool, device=logs.device).triu(1)
    # in place: these squares are the largest tensors there are, and new memory costs as much as the arithmetic
    return (sums[..., :, None] - sums[..., None, :]).masked_fill_(hidden, -torch.inf).exp_()


def _coefficients(rates: Rates, chunk_size: int) -> list[_Coefficients]:
    """Of every chunk, the last filled up with tokens that change nothing that is kept."""

    def fold(rate: Tensor) -> Tensor:
        rows = rate.flatten(0, 1)
        return pad(rows, (0, -rows.shape[1] % chunk_size)).unflatten(1, (-1, chunk_size))

    step = fold(rates.step)[..., None]
    keep = carry = into_momentum = momentum = None
    if rates.log_keep is None:
        triangle = torch.ones(chunk_size, chunk_size, dtype=step.dtype, device=step.device).tril()
        mix = triangle.expand(*step.shape[:2], -1, -1)
    else:
        log_keep = fold(rates.log_keep)
        mix = running_products(log_keep)
        keep = log_keep.cumsum(dim=-1).exp()[..., None]
    if rates.real is not None:
        counted = rates.real[:, None].expand(rates.step.shape)
        mix = mix * fold(counted.to(step.dtype))[..., None, :]
    if rates.log_momentum is not None:
        log_momentum = fold(rates.log_momentum)
        decay = running_products(log_momentum)
        from_start = log_momentum.cumsum(dim=-1).exp()[..., None]
        carry = mix @ from_start
        into_momentum = decay[..., -1, :, None]
        momentum = from_start[..., -1:, :]
        mix = mix @ decay
    # taken apart at once: in backward, taking out one chunk after the other would fill zeros for all, each time
    return [
        _Coefficients(*parts)
        for parts in zip(
            *(
                [None] * step.shape[1] if each is None else each.unbind(1)
                for each in (mix, step, keep, carry, into_momentum, momentum)
            ),
            strict=True,
        )
    ]


def _cut(by: _Coefficients, tokens: int) -> _Coefficients:
    """The coefficients of a chunk's first tokens."""
    keep, carry, into = (None if each is None else each[:, :tokens] for each in by[2:5])
    return _Coefficients(by.mix[:, :tokens, :tokens], by.step[:, :tokens], keep, carry, into, by.momentum)


def _chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    memory: Memory,
    by: _Coefficients,
    residual_norm: bool,
    limit: float | None,
    advance: bool,
) -> tuple[Tensor, Memory]:
    """One chunk; all tensors have (batch, heads) as one axis. Without `advance` the memory stays as it was."""
    found = surprise(k, v, memory.start, residual_norm=residual_norm, limit=limit)
    deltas = [delta * -by.step for delta in found.delta]

    def product(inputs: Tensor, layer: int) -> Tensor:
        # one product of [inputs keep, inputs carry, scores] with [W; S; deltas]
        scores = torch.bmm(inputs, found.x[layer].mT) * by.mix
        left = [inputs if by.keep is None else inputs * by.keep, scores]
        right = [memory.weights[layer], deltas[layer]]
        if by.carry is not None:
            left.append(inputs * by.carry)
            right.append(memory.momentum[layer])
        return torch.bmm(torch.cat(left, dim=2), torch.cat(right, dim=1))

    y = run_memory(q, product, matrices=len(memory.start) - residual_norm, residual_norm=residual_norm)
    if not advance:
        return y, memory
    last = by.mix[:, -1, :, None]
    weights, momentum = [], []
    for layer, (x, delta) in enumerate(zip(found.x, deltas, strict=True)):
        weight, change = memory.weights[layer], delta * last
        if by.keep is not None:
            weight = weight * by.keep[:, -1:]
        if by.carry is None or by.into_momentum is None or by.momentum is None:
            weights.append(torch.baddbmm(weight, x.mT, change))
            continue
        held = memory.momentum[layer]
        both = torch.bmm(x.mT, torch.cat((change, delta * by.into_momentum), dim=2))
        into_weight, into_held = both.chunk(2, dim=2)
        weights.append(torch.addcmul(weight + into_weight, held, by.carry[:, -1:]))
        momentum.append(torch.addcmul(into_held, held, by.momentum))
    return y, Memory(memory.start, tuple(weights), tuple(momentum))


def neural_memory(
    q: Tokens,
    k: Tokens,
    v: Tokens,
    rates: Rates,
    memory: Memory,
    *,
    chunk_size: int,
    residual_norm: bool,
    limit: float | None = None,
    recompute: bool = False,
) -> Tokens:
    """Reads of all tokens, the first of which begins a chunk; arguments as for `neural_memory_with_state`."""
    y, _ = _scan(q, k, v, rates, memory, chunk_size, residual_norm, limit, recompute, None, advance_last=False)
    return y


def neural_memory_with_state(
    q: Tokens,
    k: Tokens,
    v: Tokens,
    rates: Rates,
    memory: Memory,
    *,
    chunk_size: int,
    residual_norm: bool,
    limit: float | None = None,
    recompute: bool = False,
    filled: Int[Tensor, " batch"] | None = None,
) -> tuple[Tokens, Memory]:
    """Reads of all tokens and the memory after them, in chunks.

    Args:
        q: queries.
        k: keys.
        v: values.
        rates: what each token does.
        memory: what came before; its chunk under way may have begun earlier, in tokens that are marked as not real
            here.
        chunk_size: tokens in a chunk; gradients are taken at the weights at its start.
        residual_norm: whether the last weight is the gain of a residual norm.
        limit: largest norm of one token's gradient by one weight; None = none.
        recompute: compute each chunk anew in backward, and keep only the memory at its start.
        filled: number of places up to each row's last real token, where rows differ.

    Returns:
        The reads in the type of `q`, and the memory in at least float32.

    Raises:
        ValueError: shapes that do not fit.
    """
    return _scan(q, k, v, rates, memory, chunk_size, residual_norm, limit, recompute, filled, advance_last=True)


@without_autocast
def _scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rates: Rates,
    memory: Memory,
    chunk_size: int,
    residual_norm: bool,
    limit: float | None,
    recompute: bool,
    filled: Tensor | None,
    *,
    advance_last: bool,
) -> tuple[Tensor, Memory]:
    _check(q, k, v, rates, memory, chunk_size)
    dtype, (batch, heads, tokens, _) = compute_dtype(q), q.shape
    by = _coefficients(_widened(rates, dtype), min(chunk_size, tokens))
    pieces = [[part.flatten(0, 1) for part in x.to(dtype).split(chunk_size, dim=2)] for x in (q, k, v)]
    memory = Memory(*(tuple(w.to(dtype).flatten(0, 1) for w in part) for part in memory))
    step: Callable[..., tuple[Tensor, Memory]] = _checkpointed_chunk if recompute else _chunk
    reads = []
    for number, (q_part, k_part, v_part) in enumerate(zip(*pieces, strict=True)):
        length, last = q_part.shape[1], (number + 1) * chunk_size >= tokens
        coefficients = by[number] if length == by[number].mix.shape[1] else _cut(by[number], length)
        y, memory = step(q_part, k_part, v_part, memory, coefficients, residual_norm, limit, advance_last or not last)
        reads.append(y)
        if filled is not None:
            whole = (filled >= (number + 1) * chunk_size).repeat_interleave(heads)[:, None, None]
            start = tuple(torch.where(whole, new, old) for new, old in zip(memory.weights, memory.start, strict=True))
            memory = memory._replace(start=start)
        elif length == chunk_size:
            memory = memory._replace(start=memory.weights)
    y = torch.cat(reads, dim=1).unflatten(0, (batch, heads)).to(q.dtype)
    return y, Memory(*(tuple(w.unflatten(0, (batch, heads)) for w in part) for part in memory))


def _checkpointed_chunk(*arguments: object) -> tuple[Tensor, Memory]:
    made: tuple[Tensor, Memory] = checkpoint(_chunk, *arguments, use_reentrant=False)
    return made


@without_autocast
def neural_memory_step(
    q: Float[Tensor, "batch heads 1 width"],
    k: Float[Tensor, "batch heads 1 width"],
    v: Float[Tensor, "batch heads 1 width"],
    rates: Rates,
    memory: Memory,
    *,
    ends_chunk: Bool[Tensor, " batch"],
    residual_norm: bool,
    limit: float | None = None,
) -> tuple[Float[Tensor, "batch heads 1 width"], Memory]:
    """One token by the recurrence itself: the weights are changed, then read.

    Args:
        q: query.
        k: key.
        v: value.
        rates: what the token does.
        memory: what came before.
        ends_chunk: rows in which this token is the last of its chunk.
        residual_norm: whether the last weight is the gain of a residual norm.
        limit: largest norm of one token's gradient by one weight; None = none.
    """
    dtype = compute_dtype(q)
    rates = _widened(rates, dtype)
    memory = Memory(*(tuple(weight.to(dtype) for weight in part) for part in memory))
    found = surprise(k.to(dtype), v.to(dtype), memory.start, residual_norm=residual_norm, limit=limit)
    keep = None if rates.log_keep is None else rates.log_keep.exp()[..., None]
    momentum_rate = None if rates.log_momentum is None else rates.log_momentum.exp()[..., None]
    counted = None if rates.real is None else rates.real[:, None, :, None].to(dtype)
    weights, momentum = [], []
    for layer, (x, delta) in enumerate(zip(found.x, found.delta, strict=True)):
        change = -(rates.step[..., None] * x).mT * delta
        if momentum_rate is not None:
            change = change + momentum_rate * memory.momentum[layer]
            momentum.append(change)
        kept = memory.weights[layer] if keep is None else keep * memory.weights[layer]
        weights.append(kept + (change if counted is None else counted * change))
    y = read_memory(q.to(dtype), tuple(weights), residual_norm=residual_norm).to(q.dtype)
    ends = ends_chunk[:, None, None, None]
    start = tuple(torch.where(ends, new, old) for new, old in zip(weights, memory.start, strict=True))
    return y, Memory(start, tuple(weights), tuple(momentum))


def neural_memory_reference(
    q: Tokens,
    k: Tokens,
    v: Tokens,
    rates: Rates,
    memory: Memory,
    *,
    chunk_size: int,
    residual_norm: bool,
    limit: float | None = None,
) -> tuple[Tokens, Memory]:
    """The recurrence token by token, gradients by autograd at the weights at each chunk's start: the plain truth."""
    start, weights, momentum = memory
    reads = []
    for t in range(q.shape[2]):
        if t % chunk_size == 0:
            start = weights
        with torch.enable_grad():
            # copies: keys may depend on the weights themselves, and only the memory's own gradient is meant
            at = [weight.clone() if weight.requires_grad else weight.detach().requires_grad_() for weight in start]
            error = read_memory(k[:, :, t : t + 1], tuple(at), residual_norm=residual_norm) - v[:, :, t : t + 1]
            gradients = torch.autograd.grad(error.square().sum(), at, create_graph=True)
        if limit is not None:
            sizes = [gradient.norm(dim=(-2, -1), keepdim=True) for gradient in gradients]
            gradients = tuple(g * limit / size.clamp_min(limit) for g, size in zip(gradients, sizes, strict=True))
        surprises = [-rates.step[:, :, t, None, None] * gradient for gradient in gradients]
        if rates.log_momentum is not None:
            eta = rates.log_momentum[:, :, t, None, None].exp()
            surprises = [eta * held + new for held, new in zip(momentum, surprises, strict=True)]
            momentum = tuple(surprises)
        keep = 1.0 if rates.log_keep is None else rates.log_keep[:, :, t, None, None].exp()
        weights = tuple(keep * weight + change for weight, change in zip(weights, surprises, strict=True))
        reads.append(read_memory(q[:, :, t : t + 1], weights, residual_norm=residual_norm))
    if q.shape[2] % chunk_size == 0:
        start = weights
    return torch.cat(reads, dim=2), Memory(start, weights, momentum)


def stand_still(rates: Rates, real: Bool[Tensor, "batch tokens"]) -> Rates:
    """The same rates, but tokens that are not real change nothing: no step, no decay, no momentum."""
    there = real[:, None]
    log_keep, log_momentum = (
        None if rate is None else torch.where(there, rate, 0) for rate in (rates.log_keep, rates.log_momentum)
    )
    return Rates(torch.where(there, rates.step, 0), log_keep, log_momentum, real)


def neural_memory_macs(
    *, tokens: int, widths: list[int], chunk_size: int, residual_norm: bool, momentum: bool, advance: bool
) -> int:
    """Contraction MACs of `neural_memory` for one row and one head; `widths` as `memory_widths` gives them.

    `advance` counts the memory after the last token too, as `neural_memory_with_state` computes it.
    """
    pairs = list(pairwise(widths))
    gain = [(1, widths[-1])] * residual_norm
    chunk_size = min(chunk_size, tokens)
    chunks, total = -(-tokens // chunk_size), 0
    if momentum:
        total += chunks * (chunk_size**3 + chunk_size**2)
    for number in range(chunks):
        length = min(chunk_size, tokens - number * chunk_size)
        each = sum(into * out for into, out in pairs)
        # keys forward; errors back through all but the first layer
        total += length * (2 * each - pairs[0][0] * pairs[0][1])
        for into, out in [*pairs, *gain]:
            total += length * into * out * (1 + momentum) + length**2 * (into + out)
            total += length * into * out * (1 + momentum) * (advance or number < chunks - 1)
    return total


def _widened(rates: Rates, dtype: torch.dtype) -> Rates:
    step, log_keep, log_momentum = (None if rate is None else rate.to(dtype) for rate in rates[:3])
    assert step is not None
    return Rates(step, log_keep, log_momentum, rates.real)


def _check(q: Tensor, k: Tensor, v: Tensor, rates: Rates, memory: Memory, chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            f"q, k, v must have one shape (b, h, n, d), got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if rates.step.shape != q.shape[:3]:
        raise ValueError(f"rates have shape {tuple(rates.step.shape)}, they must be (b, h, n) = {tuple(q.shape[:3])}")
    first = memory.weights[0]
    if first.shape[:3] != (q.shape[0], q.shape[1], q.shape[3]):
        raise ValueError(
            f"the memory's first weight has shape {tuple(first.shape)}, it must begin with (b, h, d) = "
            f"{(q.shape[0], q.shape[1], q.shape[3])}"
        )
    if bool(memory.momentum) != (rates.log_momentum is not None):
        raise ValueError("the memory must hold momentum if, and only if, the rates give one")
