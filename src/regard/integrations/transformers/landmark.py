"""Retrieval of blocks inside transformers' models: without landmarks, or with those that a model was trained with.

`landmark` needs no training: the tokens are the caller's, and a block is found by the mean of its keys. It is after
"Landmark Attention" (Mohtashami and Jaggi, NeurIPS 2023, https://arxiv.org/abs/2305.16300), not the paper's:
`regard.ops.block_retrieval` says what a query sees. `landmark_tokens` is the paper's inference, for models whose every
(block_size + 1)-th token is a trained landmark.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard.contract import State
from regard.integrations.transformers.caches import Advance
from regard.integrations.transformers.mechanism import InsertedLandmarks, Mechanism
from regard.integrations.transformers.steps import rotary_base, sizes_of, turned_back
from regard.layers.block_memory import BlockMemory, empty_block_memory
from regard.layers.landmark_memory import LandmarkMemory, empty_landmark_memory
from regard.layers.offload import Offload, check_offload
from regard.ops.block_retrieval import BlockRetrieval
from regard.ops.landmark_retrieval import Retrieval, Selection


def landmark(
    *, block_size: int = 64, top_k: int = 4, recent: int = 3, sinks: int = 1, offload: Offload = "none"
) -> Mechanism:
    """Retrieval of blocks from all tokens so far, with positions that stay near; any model, as it is.

    Args:
        block_size: tokens in a block.
        top_k: blocks that each query and head chooses.
        recent: blocks before a query's own that it always sees.
        sinks: first blocks of the text that it always sees.
        offload: where keys and values lie: "none" beside the model, "cpu" in host memory, "disk" in a file that is
            mapped into it.

    Raises:
        ValueError: a number out of its range, or an unknown place.
    """
    sizes = BlockRetrieval(block_size=block_size, top_k=top_k, recent=recent, sinks=sinks)
    check_offload(offload)

    def step(config: Any, layer: int, max_len: int | None = None) -> Advance:
        retrieval = replace(sizes, rope_base=rotary_base(config, "landmark"))
        return block_step(retrieval, offload=offload, max_len=max_len)

    return Mechanism(step=step)


def landmark_tokens(
    *,
    landmark_id: int | None = None,
    block_size: int = 50,
    top_k: int = 5,
    selection: Selection = "per_token_and_head",
    window: int = 255,
    offload: Offload = "none",
) -> Mechanism:
    """The paper's retrieval, for a model that was trained with landmarks; its ids hold one after every block.

    Args:
        landmark_id: of the trained landmark, for what puts it between the tokens of a text; None = nothing does.
        block_size: ordinary tokens in a block.
        top_k: blocks that a query retrieves.
        selection: queries retrieve "per_token_and_head", or share a choice: "max_over_heads", "max_over_tokens".
        window: tokens, landmarks included, that are read at once and see each other in full.
        offload: where blocks lie: "none" beside the model, "cpu" in host memory, "disk" in a file that is mapped into
            it.

    Raises:
        ValueError: a number out of its range, an unknown selection or an unknown place.
    """
    sizes = Retrieval(block_size=block_size, top_k=top_k, selection=selection)
    check_offload(offload)
    if window < 1 or (landmark_id is not None and landmark_id < 0):
        raise ValueError(
            f"window must be at least 1 and landmark_id at least 0, got window={window} and landmark_id={landmark_id}"
        )

    def step(config: Any, layer: int, max_len: int | None = None) -> Advance:
        retrieval = replace(sizes, rope_base=rotary_base(config, "landmark_tokens"))
        return landmark_step(retrieval, window=window, offload=offload, max_len=max_len)

    inserted = None if landmark_id is None else InsertedLandmarks(block_size, landmark_id)
    return Mechanism(step=step, landmarks=inserted)


def block_step(retrieval: BlockRetrieval, *, offload: Offload, max_len: int | None) -> Advance:
    """Retrieval of blocks without landmarks."""

    def advance(
        q: Tensor, k: Tensor, v: Tensor, state: BlockMemory | None, mask: Tensor | None
    ) -> tuple[Tensor, State]:
        if state is None:
            state = empty_block_memory(
                len(q), retrieval, **sizes_of(k, v), max_len=max_len, offload=offload, like=k.detach()
            )
        q, k = (turned_back(x, state.position, retrieval.rope_base) for x in (q, k))
        return state.attend(q, k, v, retrieval, mask=mask)

    return advance


def landmark_step(retrieval: Retrieval, *, window: int, offload: Offload, max_len: int | None) -> Advance:
    """The memory of landmark attention, read in windows."""

    def advance(
        q: Tensor, k: Tensor, v: Tensor, state: LandmarkMemory | None, mask: Tensor | None
    ) -> tuple[Tensor, State]:
        if state is None:
            state = empty_landmark_memory(
                len(q),
                **sizes_of(k, v),
                block_size=retrieval.block_size,
                max_blocks=None,
                max_len=max_len,
                offload=offload,
                like=k.detach(),
            )
        q, k = (turned_back(x, state.position, retrieval.rope_base) for x in (q, k))
        parts = []
        for begin in range(0, q.shape[2], window):
            some = slice(begin, begin + window)
            real = None if mask is None else mask[:, some]
            mixed, state = state.attend(q[:, :, some], k[:, :, some], v[:, :, some], retrieval, mask=real)
            parts.append(mixed)
        return torch.cat(parts, dim=2), state

    return advance
