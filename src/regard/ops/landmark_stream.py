"""Where landmarks stand between the tokens of a text, and what is predicted where they do.

Paper: "Landmark Attention", Mohtashami and Jaggi, NeurIPS 2023, https://arxiv.org/abs/2305.16300, section 3.1.
Compared with epfml/landmark-attention@d963e504, `lm_benchmark/models/caches/mem_cache.py` (`MemLMCache`) and
`lm_benchmark/optim/utils.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.landmark_sections import is_landmark

IGNORED = -1
"""The target where nothing is predicted."""


@dataclass(frozen=True)
class Spacing:
    """Tokens with a landmark after every block of them.

    Args:
        sources: which of the tokens stands at each place, where no landmark does.
        landmarks: where landmarks stand.
        places: where each token stands.
    """

    sources: Int[Tensor, "rows places"]
    landmarks: Bool[Tensor, "rows places"]
    places: Int[Tensor, "rows tokens"]

    def insert(self, tokens: Int[Tensor, "batch tokens"], landmark_id: int) -> Int[Tensor, "batch places"]:
        """The tokens with landmarks between them."""
        spaced = tokens.gather(1, self.sources.expand(len(tokens), -1))
        return torch.where(self.landmarks, landmark_id, spaced)


def spacing(tokens: int, *, before: Int[Tensor, " rows"], longest: int, block_size: int) -> Spacing:
    """Where tokens and landmarks stand behind an unfinished block; a landmark follows the last token of its block.

    Args:
        tokens: number of new tokens.
        before: ordinary tokens of the unfinished block, below `block_size`; one number for all rows, or one for each.
        longest: the largest of them.
        block_size: ordinary tokens in a block.
    """
    length = tokens + (longest + tokens) // block_size
    span = block_size + 1
    spots = before[:, None] + torch.arange(length, device=before.device)
    order = torch.arange(tokens, device=before.device)
    return Spacing(
        sources=(spots - spots // span - before[:, None]).clamp(max=tokens - 1),
        landmarks=is_landmark(spots, block_size),
        places=order + (before[:, None] + order) // block_size,
    )


def spaced_count(
    counts: Int[Tensor, " batch"], *, before: Int[Tensor, " batch"], block_size: int
) -> Int[Tensor, " batch"]:
    """Tokens and landmarks, when `counts` tokens follow an unfinished block of `before`."""
    return counts + (before + counts) // block_size


def stream_targets(
    ids: Int[Tensor, "batch places"], *, landmark_id: int, end_id: int | None
) -> Int[Tensor, "batch places"]:
    """The next ordinary token of every ordinary token; -1 at landmarks, at ends of texts, and where none follows.

    Args:
        ids: tokens with landmarks between them, never two side by side.
        landmark_id: the landmarks' id.
        end_id: the id that ends a text; None = there is none.
    """
    following = pad(ids[:, 1:], (0, 2), value=landmark_id)
    targets = torch.where(following[:, :-1] == landmark_id, following[:, 1:], following[:, :-1])
    nothing = (ids == landmark_id) | (targets == landmark_id)
    if end_id is not None:
        nothing = nothing | (ids == end_id)
    return torch.where(nothing, IGNORED, targets)
