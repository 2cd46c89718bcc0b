"""Where landmarks stand, and how the other tokens appear to a query: in its own block, or in an earlier one.

Paper: "Landmark Attention", Mohtashami and Jaggi, NeurIPS 2023, https://arxiv.org/abs/2305.16300, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.visibility import run_starts


def is_landmark(places: Int[Tensor, "*shape"], block_size: int) -> Bool[Tensor, "*shape"]:
    """Whether a landmark stands at these places, when one follows every `block_size` ordinary tokens."""
    return places % (block_size + 1) == block_size


def landmarks_of_segments(segments: Int[Tensor, "batch tokens"], block_size: int) -> Bool[Tensor, "batch tokens"]:
    """Landmarks after every `block_size` ordinary tokens of each packed sequence."""
    places = torch.arange(segments.shape[1], device=segments.device) - run_starts(segments)
    return is_landmark(places, block_size)


@dataclass(frozen=True)
class Sections:
    """How the keys appear to every query; landmarks are in neither map.

    Args:
        own: ordinary tokens of the query's own block.
        earlier: ordinary tokens of earlier blocks.
        number: the block that a key belongs to.
        last: the query's own block.
    """

    own: Bool[Tensor, "#batch 1 queries keys"]
    earlier: Bool[Tensor, "#batch 1 queries keys"]
    number: Int[Tensor, "#batch keys"]
    last: Int[Tensor, "#batch 1 queries 1"]


def sections_of_places(rows: Int[Tensor, "#batch queries"], keys: int, *, block_size: int) -> Sections:
    """Sections where a landmark follows every `block_size` ordinary tokens, keys beginning with a block.

    Args:
        rows: places of the queries among the keys; a query sees the keys up to its own.
        keys: number of keys.
        block_size: ordinary tokens in a block.
    """
    columns = torch.arange(keys, device=rows.device)
    number, last = columns // (block_size + 1), rows[:, None, :, None] // (block_size + 1)
    ordinary = ~is_landmark(columns, block_size)
    own = (number == last) & (columns <= rows[:, None, :, None]) & ordinary
    return Sections(own=own, earlier=(number < last) & ordinary, number=number[None], last=last)


def sections_of_layout(
    landmarks: Bool[Tensor, "batch keys"], visible: Bool[Tensor, "#batch 1 queries keys"]
) -> Sections:
    """Sections where landmarks stand anywhere; a query's own block is the last that it sees."""
    number = landmarks.cumsum(dim=-1) - landmarks.to(torch.int64)
    ordinary = ~landmarks[:, None, None]
    seen = torch.where(visible, number[:, None, None], 0)
    last = seen.amax(dim=-1, keepdim=True)
    own = visible & ordinary & (seen == last)
    return Sections(own=own, earlier=visible & ordinary & (seen < last), number=number, last=last)


def check_block_size(block_size: int) -> None:
    """Refuse blocks without ordinary tokens.

    Raises:
        ValueError: `block_size` is not positive.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1 ordinary token, got {block_size}")


def check_landmarks(landmarks: Bool[Tensor, "batch tokens"]) -> None:
    """Refuse a layout in which a landmark has no block. It looks at the values, so it is skipped while tracing.

    Raises:
        ValueError: two landmarks side by side, or one at the beginning.
    """
    if torch.compiler.is_compiling():
        return
    alone = landmarks & pad(landmarks[:, :-1], (1, 0), value=True)
    if bool(alone.any()):
        row, place = (int(index) for index in alone.nonzero()[0])
        raise ValueError(f"a landmark needs an ordinary token before it, the one at {place} of row {row} has none")
