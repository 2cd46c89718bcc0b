"""Softmax attention in blocks of queries with plain matrix products, for bfloat16 on the CPU.

There PyTorch's fused kernel computes at float32 speed, while bfloat16 matrix products are several times faster: a
block of queries against all keys that it may see is two products and a softmax of one block of rows, in a workspace
that is used again and again. The backward pass recomputes the weights of a block, as "FlashAttention" does (Dao et
al., NeurIPS 2022, https://arxiv.org/abs/2205.14135, section 3.1), so that nothing of quadratic size is kept.

A product rounds the scores to bfloat16, whose error grows with their size. Softmax does not change when a row's
scores are shifted, so each row is shifted, inside the product, by its largest score against a sample of the keys:
the scores that carry the weight are then near zero, where rounding is fine.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

QUERY_BLOCK = 256
SMALLEST_LENGTH = 256
"""Below this many queries the fused kernel is as fast."""
WORKSPACE_NUMBERS = 2**21
"""Scores held at once; heads are taken in groups that fit."""
SAMPLED_KEYS = 64


def blocked_is_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the blocked form wins: bfloat16 on the CPU, and enough queries and keys."""
    narrow = q.dtype == k.dtype == v.dtype == torch.bfloat16
    return narrow and q.device.type == "cpu" and min(q.shape[2], k.shape[2]) >= SMALLEST_LENGTH


def blocked_softmax_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    causal: bool,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Softmax attention, one block of queries at a time; with `causal`, as many queries as keys."""
    batch, heads = q.shape[:2]
    flat = (x.reshape(batch * heads, x.shape[2], x.shape[3]) for x in (q, k, v))
    mixed = _BlockedSoftmax.apply(*flat, causal)
    return mixed.view(batch, heads, q.shape[2], v.shape[3])


class _Blocks:
    """Walks over groups of heads and blocks of queries, and gives each block's weights in one workspace."""

    def __init__(self, q: Tensor, k: Tensor, causal: bool) -> None:
        sample = k[:, :: max(1, k.shape[1] // SAMPLED_KEYS)]
        largest = torch.bmm(q, sample.transpose(1, 2)).amax(dim=-1, keepdim=True)
        # the second column keeps the width even, as the matrix product wants it
        self.q = torch.cat((q, -largest, torch.zeros_like(largest)), dim=-1)
        self.k = torch.nn.functional.pad(k, (0, 2), value=1.0)
        self.scale = q.shape[2] ** -0.5
        self.causal = causal
        self.rows = min(QUERY_BLOCK, q.shape[1])
        self.heads = max(1, min(q.shape[0], WORKSPACE_NUMBERS // (self.rows * k.shape[1])))
        self.workspace = q.new_empty(self.heads * self.rows * k.shape[1])
        self.future = q.new_full((self.rows, self.rows), -torch.inf).triu(1)

    def __iter__(self) -> Any:
        for head in range(0, self.q.shape[0], self.heads):
            group = slice(head, min(head + self.heads, self.q.shape[0]))
            for start in range(0, self.q.shape[1], self.rows):
                yield group, slice(start, min(start + self.rows, self.q.shape[1]))

    def seen(self, block: slice) -> slice:
        """The keys that a block of queries may see."""
        return slice(0, block.stop if self.causal else self.k.shape[1])

    def weights(self, group: slice, block: slice) -> Float[Tensor, "heads rows keys"]:
        """Softmax weights of a block; the next call overwrites them."""
        q, k = self.q[group, block], self.k[group, self.seen(block)]
        shape = (q.shape[0], q.shape[1], k.shape[1])
        scores = self.workspace[: shape[0] * shape[1] * shape[2]].view(shape)
        torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=self.scale, out=scores)
        if self.causal:
            scores[:, :, block] += self.future[: shape[1], : shape[1]]
        return torch.softmax(scores, dim=-1, out=scores)


class _BlockedSoftmax(torch.autograd.Function):
    """Forward keeps only its inputs; backward recomputes each block's weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        mixed = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
        blocks = _Blocks(q, k, causal)
        for group, block in blocks:
            mixed[group, block] = torch.bmm(blocks.weights(group, block), v[group, blocks.seen(block)])
        ctx.save_for_backward(q, k, v)
        ctx.causal = causal
        return mixed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        upstream = grad_outputs[0]
        wide = torch.promote_types(k.dtype, torch.float32)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        blocks = _Blocks(q, k, ctx.causal)
        for group, block in blocks:
            seen = blocks.seen(block)
            weights, above = blocks.weights(group, block), upstream[group, block]
            grad_v[group, seen] += torch.bmm(weights.transpose(1, 2), above)
            grad_weights = torch.bmm(above, v[group, seen].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q[group, block] = torch.bmm(grad_scores, k[group, seen]) * blocks.scale
            grad_k[group, seen] += torch.bmm(grad_scores.transpose(1, 2), q[group, block])
        return grad_q, (grad_k * blocks.scale).to(k.dtype), grad_v.to(v.dtype), None
