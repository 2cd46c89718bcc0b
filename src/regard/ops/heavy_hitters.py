"""H2O: which keys stay in a cache, by the weight that they have received so far.

Paper: "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", Zhang et al.,
NeurIPS 2023, https://arxiv.org/abs/2306.14048, section 4. A key's score is the sum of the softmax weights that all
queries which saw it gave it; the latest keys stay, and of the others those with the highest scores.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.grouped_attention import Keys, Queries, Values, group_weights, weigh_values
from regard.ops.precision import without_autocast
from regard.ops.recycled import choose_keys

ROWS_AT_ONCE = 128
"""Queries whose weights are in memory at once."""

Scores = Float[Tensor, "batch kv_heads keys"]


@without_autocast
def attend_and_score(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    past: Bool[Tensor, "#batch #kv_heads past"] | None = None,
    real: Bool[Tensor, "batch queries"] | None = None,
) -> tuple[Float[Tensor, "batch heads queries value_dim"], Scores]:
    """Causal attention of new tokens to a past and to each other, and the weight that every key received.

    The weight is summed over the real queries and over the query heads that share the key; no gradient flows into it.

    Args:
        q: queries of the new tokens.
        k: the past's keys, then the new ones; their heads may be fewer than the queries'.
        v: values.
        past: which keys of the past there are; None = there are no others than the new tokens'.
        real: which queries count; the others' results are undefined, but finite.
    """
    tokens = q.shape[2]
    before = k.shape[2] - tokens
    columns = torch.arange(tokens, device=q.device)
    parts, scores = [], torch.zeros(k.shape[:3], dtype=torch.float32, device=k.device)
    for start in range(0, tokens, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, tokens)
        visible = (columns[:stop] <= columns[start:stop, None])[None, None]
        if past is not None:
            heads = past.shape[:2]
            held = past[:, :, None].expand(-1, -1, stop - start, -1)
            visible = torch.cat((held, visible.expand(*heads, -1, -1)), dim=-1)
        weights = group_weights(q[:, :, start:stop], k[:, :, : before + stop], visible=visible)
        parts.append(weigh_values(weights, v[:, :, : before + stop]))
        received = weights.detach() if real is None else weights.detach() * real[:, None, None, start:stop, None]
        received = received.sum(dim=(2, 3))
        scores = scores.to(received.dtype) + torch.nn.functional.pad(received, (0, tokens - stop))
    return torch.cat(parts, dim=2).to(q.dtype), scores


def heavy_or_recent(
    scores: Scores,
    places: Int[Tensor, "batch kv_heads keys"],
    position: Int[Tensor, " batch"],
    cache_size: int,
) -> Int[Tensor, "batch kv_heads cache_size"]:
    """Which keys stay: the last `cache_size // 2` tokens, and of the others those with the highest scores.

    Args:
        scores: weight that each key has received.
        places: its token's position; -1 where there is no key.
        position: number of tokens so far, per row.
        cache_size: how many keys stay; -1 at the front of the result where there are fewer.
    """
    recent = places >= (position - cache_size // 2)[:, None, None]
    return choose_keys(scores.masked_fill(recent, torch.inf), cache_size, allowed=places >= 0)
