"""Reversed attention: a token spreads its own value over the parents that it attends to, instead of gathering theirs.

Paper: "Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention", Ding et al., CVPR 2023,
https://arxiv.org/abs/2304.03282, section 3 and figure 2. The authors published no code.
With A = softmax(q k^T / sqrt(d)) over the parents, and the weight w_i = P_i m_i of a sender (which head it chose, and
how much it still sends), parent j receives Y_j = sum_i A[i, j] w_i v_i. The weight belongs to the sender, so it is
multiplied into the values beforehand, and a head costs two products as in ordinary attention. Senders are independent
of each other, so that long sequences go through in blocks of them: memory then is linear in the number of tokens.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.ops.precision import compute_dtype, product_dtype, without_autocast

Heads = Float[Tensor, "batch heads tokens head_dim"]
HeadWeights = Float[Tensor, "batch heads tokens"]
TokenWeights = Float[Tensor, "batch tokens"]

AT_ONCE = 1024
"""Up to this many senders, all scores are held at once; they then take less memory than the perceptrons around them."""


@without_autocast
def choose_heads(logits: Float[Tensor, "batch tokens heads"], temperature: float) -> HeadWeights:
    """P: softmax over heads of `logits / temperature` for every token, in at least float32.

    At a temperature of 0.1 narrow types would lose the smaller choices, and their gradients overflow.
    """
    return (logits.to(compute_dtype(logits)) / temperature).softmax(dim=-1).transpose(1, 2)


@without_autocast
def forward_weights(q: Heads, k: Heads) -> Float[Tensor, "batch heads senders parents"]:
    """A: how every token, a row, spreads over its parents; rows sum to 1, in at least float32."""
    dtype = product_dtype(q)
    scores = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(2, 3)
    return scores.softmax(dim=-1, dtype=compute_dtype(q))


@without_autocast
def reversed_attention(
    q: Heads, k: Heads, messages: Float[Tensor, "batch heads tokens width"]
) -> Float[Tensor, "batch heads tokens width"]:
    """What every token receives as a parent: A^T messages, a message being the sender's weight times its value.

    Args:
        q: what tokens look for in a parent.
        k: what they offer as a parent.
        messages: of any width, one per token and head.
    """
    tokens = q.shape[2]
    if tokens <= AT_ONCE:
        return _send(q, k, messages)
    recompute = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, messages))
    received = torch.zeros_like(messages)
    for start in range(0, tokens, AT_ONCE):
        senders = slice(start, start + AT_ONCE)
        block = (q[:, :, senders], k, messages[:, :, senders])
        part = checkpoint(_send, *block, use_reentrant=False, preserve_rng_state=False) if recompute else _send(*block)
        received = received + part
    return received


def _send(q: Tensor, k: Tensor, messages: Tensor) -> Tensor:
    dtype = product_dtype(messages)
    received = forward_weights(q, k).to(dtype).transpose(2, 3) @ messages.to(dtype)
    return received.to(messages.dtype)


@without_autocast
def dependency_mask(q: Heads, k: Heads, weights: HeadWeights) -> Float[Tensor, "batch receivers senders"]:
    """A^M: the sum over heads of `A[i, j] * weights[i]`, receiver j in a row and sender i in a column.

    Where the weights are a choice of heads times m, the columns sum to m. It takes quadratic memory.
    """
    return torch.einsum("bhij,bhi->bji", forward_weights(q, k), weights.to(compute_dtype(q)))


# --------------------------------------------------------------------------------------------------- pruning


def kept_part(number: int, ratio: float) -> tuple[int, int]:
    """Which part of the tokens is left after pruning number `number`, counted from 1: numerator and denominator.

    Every pruning takes `ratio` of the original number: (1 - number ratio) / (1 - (number - 1) ratio) is left, in exact
    arithmetic on the decimal figure of `ratio`.
    """
    decimal = Fraction(str(ratio))
    part = (1 - number * decimal) / (1 - (number - 1) * decimal)
    return part.numerator, part.denominator


def tokens_kept(tokens: int, part: tuple[int, int]) -> int:
    """The part of `tokens` from `kept_part`, rounded down, and at least one token."""
    return max(1, tokens * part[0] // part[1])


def best_tokens(scores: TokenWeights, count: int) -> Int[Tensor, "batch kept"]:
    """The `count` tokens of the highest scores, in the order of their positions."""
    return scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values


def take_tokens(
    x: Float[Tensor, "batch tokens dim"], chosen: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept dim"]:
    """The chosen tokens."""
    return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))


def put_tokens(
    x: Float[Tensor, "batch kept dim"], chosen: Int[Tensor, "batch kept"], tokens: int
) -> Float[Tensor, "batch tokens dim"]:
    """The inverse of `take_tokens`: chosen tokens at their places, zeros at the others."""
    return x.new_zeros(x.shape[0], tokens, x.shape[2]).scatter(1, chosen[..., None].expand_as(x), x)
