"""Softmax attention in blocks of queries with plain matrix products, for bfloat16 on CPUs that multiply it.

There PyTorch's fused kernel computes at float32 speed, while bfloat16 matrix products are several times faster: a
block of queries against all keys that it may see is two products and a softmax of one block of rows, in a workspace
that is used again and again. The backward pass recomputes the weights of a block, as "FlashAttention" does (Dao et
al., NeurIPS 2022, https://arxiv.org/abs/2205.14135, section 3.1), so that nothing of quadratic size is kept.

A product rounds the scores to bfloat16, whose error grows with their size. Softmax does not change when a row's
scores are shifted, so each row is shifted, inside the product, by its largest score against a sample of the keys:
the scores that carry the weight are then near zero, where rounding is fine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.ops import precision

QUERY_BLOCK = 256
SMALLEST_LENGTH = 256
"""Below this many queries the fused kernel is as fast."""
SAMPLED_KEYS = 64


def blocked_is_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the blocked form wins: bfloat16 on a CPU that multiplies it, and enough queries and keys."""
    narrow = q.dtype == k.dtype == v.dtype == torch.bfloat16
    multiplied = narrow and q.device.type == "cpu" and precision.NATIVE_BFLOAT16
    return multiplied and min(q.shape[2], k.shape[2]) >= SMALLEST_LENGTH


def blocked_softmax_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    causal: bool,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Softmax attention, one block of queries at a time; with `causal`, as many queries as keys."""
    batch, heads = q.shape[:2]
    flat = [x.reshape(batch * heads, x.shape[2], x.shape[3]) for x in (q, k, v)]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in flat)
    mixed = _BlockedSoftmax.apply(*flat, causal, keep)
    return mixed.view(batch, heads, q.shape[2], v.shape[3])


def _widened(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`x` with two more columns: what a product with `_ones_appended` adds to every entry of a row."""
    return torch.cat((x, first, second), dim=-1)


def _ones_appended(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 2), value=1.0)


def _split_in_two(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two numbers of a narrow type whose sum is `x` almost exactly."""
    large = x.to(dtype)
    return large, (x - large).to(dtype)


def _blocks(length: int) -> Iterator[slice]:
    for start in range(0, length, QUERY_BLOCK):
        yield slice(start, min(start + QUERY_BLOCK, length))


class _Workspace:
    """Memory for one block of scores of one head, used again for every block."""

    def __init__(self, like: Tensor, rows: int, columns: int) -> None:
        self.memory = like.new_empty(rows * columns)

    def product(self, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """`scale * a b^T` for `(rows, width)` and `(columns, width)`."""
        result = self.memory[: a.shape[0] * b.shape[0]].view(a.shape[0], b.shape[0])
        return result.addmm_(a, b.T, beta=0, alpha=scale)


def _future(rows: int, like: Tensor) -> Tensor:
    """Minus infinity above the diagonal, zero elsewhere."""
    return like.new_full((rows, rows), -torch.inf).triu(1)


class _BlockedSoftmax(torch.autograd.Function):
    """Forward walks over blocks of queries, backward over blocks of keys; neither keeps a block."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, keep: bool) -> Tensor:
        heads, queries, width = q.shape
        wide, scale = torch.promote_types(q.dtype, torch.float32), width**-0.5
        sample = k[:, :: max(1, k.shape[1] // SAMPLED_KEYS)]
        largest = torch.bmm(q, sample.transpose(1, 2)).amax(dim=-1, keepdim=True)
        shifted, keys = _widened(q, -largest, torch.zeros_like(largest)), _ones_appended(k)
        mixed = q.new_empty(heads, queries, v.shape[2])
        normaliser = q.new_empty(heads, queries if keep else 0, 1, dtype=wide)
        rows = min(QUERY_BLOCK, queries)
        workspace, future = _Workspace(q, rows, k.shape[1]), _future(rows, q)
        for head in range(heads):
            for block in _blocks(queries):
                seen = slice(0, block.stop if causal else k.shape[1])
                scores = workspace.product(shifted[head, block], keys[head, seen], scale)
                if causal:
                    here = block.stop - block.start
                    scores[:, block] += future[:here, :here]
                peak = scores.amax(dim=-1, keepdim=True).to(wide) if keep else None
                weights = torch.softmax(scores, dim=-1, out=scores)
                if peak is not None:
                    normaliser[head, block] = peak - weights.amax(dim=-1, keepdim=True).to(wide).log()
                torch.mm(weights, v[head, seen], out=mixed[head, block])
        if keep:
            # the weights are exp(scaled score of the unshifted query - normaliser)
            ctx.save_for_backward(q, k, v, mixed, normaliser + largest.to(wide) * scale)
            ctx.causal = causal
        return mixed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixed, normaliser = ctx.saved_tensors
        upstream, scale = grad_outputs[0].contiguous(), q.shape[2] ** -0.5
        share = (upstream.to(normaliser.dtype) * mixed.to(normaliser.dtype)).sum(dim=-1, keepdim=True)
        lowered = _widened(q, *_split_in_two(-normaliser / scale, q.dtype))
        centred = _widened(upstream, *_split_in_two(-share, q.dtype))
        keys, values = _ones_appended(k), _ones_appended(v)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        rows = min(QUERY_BLOCK, k.shape[1])
        first, second = _Workspace(q, rows, q.shape[1]), _Workspace(q, rows, q.shape[1])
        past = _future(rows, q).T
        for head in range(q.shape[0]):
            for_head = q.new_zeros(q.shape[1], q.shape[2], dtype=normaliser.dtype)
            for block in _blocks(k.shape[1]):
                seeing = slice(block.start if ctx.causal else 0, q.shape[1])
                scores = first.product(keys[head, block], lowered[head, seeing], scale)
                if ctx.causal:
                    here = block.stop - block.start
                    scores[:, :here] += past[:here, :here]
                weights = scores.exp_()
                torch.mm(weights, upstream[head, seeing], out=grad_v[head, block])
                grad_scores = weights.mul_(second.product(values[head, block], centred[head, seeing], 1.0))
                torch.mm(grad_scores, q[head, seeing], out=grad_k[head, block])
                for_head[seeing] += torch.mm(grad_scores.T, k[head, block])
            grad_q[head] = for_head.mul_(scale)
        return grad_q, grad_k.mul_(scale), grad_v, None, None
