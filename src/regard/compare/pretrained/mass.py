"""The attention mass that a mechanism recovers: how much of full attention falls on the keys that it attends to.

A softmax over some of the keys weighs each of them by its weight in full attention over m, where m is the mass of all
that are kept. Every mechanism here keeps a query's own key, so m is that key's weight in full attention over its weight
in the mechanism's, which a value that is 1 at this key and 0 elsewhere shows.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.compare.pretrained.contestants import Contestant
from regard.integrations.transformers.attention import MECHANISMS
from regard.integrations.transformers.caches import Advance
from regard.integrations.transformers.landmark import block_step
from regard.integrations.transformers.recording import QueriesKeys
from regard.integrations.transformers.steps import streaming_step
from regard.ops.block_retrieval import BlockRetrieval
from regard.ops.heads import repeat_heads
from regard.ops.streaming import Streaming

STEPS = 16
"""Tokens that are decoded: a whole cycle of mechanisms that see everything now and then."""
CHUNK = 512


def step_on_recorded_keys(contestant: Contestant, config: Any, layer: int) -> Advance:
    """The mechanism's step for keys that carry the model's own positions.

    StreamingLLM and retrieval of blocks give keys new positions inside a model; here they keep theirs, so that all are
    weighed alike.

    Args:
        contestant: a mechanism that keeps some of the keys.
        config: of the model's text part.
        layer: its number.
    """
    if contestant.mechanism == "streaming_llm":
        return streaming_step(Streaming(cache_size=contestant.options["cache_size"]), refresh_stride=None)
    if contestant.mechanism == "landmark":
        return block_step(BlockRetrieval(**contestant.options), offload="none", max_len=None)
    step = MECHANISMS[contestant.mechanism](**contestant.options).step
    assert step is not None, "every contestant with a budget keeps a state"
    return step(config, layer)


@torch.no_grad()
def recovered_mass(
    q: Float[Tensor, "1 heads tokens head_dim"], k: Float[Tensor, "1 kv_heads tokens head_dim"], advance: Advance
) -> Float[Tensor, "heads steps"]:
    """Mass of full attention on the keys that the last tokens attend to, each decoded after all before it.

    Args:
        q: queries, of a prompt and `STEPS` tokens after it.
        k: keys of the same tokens.
        advance: the mechanism's step.

    Raises:
        ValueError: no token before those that are decoded.
    """
    prompt = q.shape[2] - STEPS
    if prompt < 1:
        raise ValueError(f"needs more than {STEPS} tokens, got {q.shape[2]}")
    own = torch.arange(STEPS, device=q.device)
    v = torch.zeros(*k.shape[:3], max(STEPS, k.shape[3]), dtype=k.dtype, device=k.device)
    v[:, :, prompt + own, own] = 1
    state = None
    for start in range(0, prompt, CHUNK):
        piece = slice(start, min(start + CHUNK, prompt))
        _, state = advance(q[:, :, piece], k[:, :, piece], v[:, :, piece], state, None)
    masses = []
    for step in range(STEPS):
        at = slice(prompt + step, prompt + step + 1)
        mixed, state = advance(q[:, :, at], k[:, :, at], v[:, :, at], state, None)
        in_full = _own_weight(q[:, :, at], k[:, :, : prompt + step + 1])
        masses.append(in_full / mixed[0, :, 0, step].double())
    return torch.stack(masses, dim=1).clamp(max=1.0).float()


def _own_weight(q: Tensor, k: Tensor) -> Float[Tensor, " heads"]:
    """The newest key's weight in full attention."""
    keys = repeat_heads(k, q.shape[1]).double()
    scores = (q.double() @ keys.transpose(2, 3))[0, :, 0] * q.shape[3] ** -0.5
    return (scores[:, -1] - scores.logsumexp(dim=1)).exp()


def mean_mass(contestant: Contestant, config: Any, recorded: dict[int, QueriesKeys]) -> float:
    """The recovered mass, averaged over layers, heads and decoded tokens; layers that attend in full count as 1.

    Args:
        contestant: a mechanism that keeps some of the keys.
        config: of the model's text part.
        recorded: queries and keys by layer.
    """
    layers = [
        recovered_mass(q, k, step_on_recorded_keys(contestant, config, layer))
        for layer, (q, k) in sorted(recorded.items())
    ]
    return float(torch.cat([mass.flatten() for mass in layers]).nanmean())
