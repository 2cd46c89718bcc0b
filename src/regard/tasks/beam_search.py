"""Beam search over a sequence-to-sequence model's state: the likeliest target for every source of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regard.models.language.seq2seq import Seq2SeqModel


@torch.no_grad()
def beam_search(
    model: Seq2SeqModel,
    source: Int[Tensor, "batch source"],
    source_mask: Bool[Tensor, "batch source"] | None,
    *,
    start_id: int,
    end_id: int,
    max_len: int,
    beams: int = 4,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """The best finished target of each row, without start and end token.

    A hypothesis scores its log-probability divided by its length to the power `length_penalty`; one is finished when
    its end token is among the `beams` likeliest continuations. A row is done when `beams` are finished, or when no open
    one can beat the best of them.

    Args:
        model: in eval mode.
        source: ids.
        source_mask: True = real token.
        start_id: the token that targets begin with.
        end_id: the token that ends them.
        max_len: most tokens of a target.
        beams: hypotheses that are kept per row; 1 = the likeliest token each time.
        length_penalty: 0 = favour short targets.

    Raises:
        ValueError: fewer than one beam or token, or a negative penalty.
    """
    if beams < 1 or max_len < 1:
        raise ValueError(f"beams and max_len must be at least 1, got {beams} and {max_len}")
    if length_penalty < 0:
        raise ValueError(f"length_penalty must not be negative, got {length_penalty}")
    rows, device = source.shape[0], source.device
    first = torch.arange(rows, device=device).repeat_interleave(beams)
    state = model.encode(source, source_mask, max_len=max_len + 1).reorder(first)
    # at the start all beams of a row are equal: only one may go on
    totals = torch.full((rows, beams), -torch.inf, device=device)
    totals[:, 0] = 0
    paths = torch.zeros(rows, beams, 0, dtype=torch.int64, device=device)
    new = torch.full((rows * beams, 1), start_id, device=device)
    best: list[tuple[float, list[int]]] = [(-torch.inf, []) for _ in range(rows)]
    finished = torch.zeros(rows, dtype=torch.int64, device=device)
    for length in range(1, max_len + 1):
        scores, state = model.step(new, state)
        chances = totals[..., None] + scores[:, -1].float().log_softmax(dim=-1).unflatten(0, (rows, beams))
        vocab = chances.shape[-1]
        totals, flat = chances.flatten(1).topk(min(2 * beams, beams * vocab), dim=1)
        parents, tokens = flat // vocab, flat % vocab
        # at the last step what is cut off counts as finished
        ended = (tokens == end_id) | (length == max_len)
        ended &= totals.isfinite() & (torch.arange(tokens.shape[1], device=device) < beams)
        _keep_finished(best, paths, parents, tokens, totals, ended, end_id, length**length_penalty)
        finished += ended.sum(dim=1)
        totals = totals.masked_fill((tokens == end_id) | (finished >= beams)[:, None], -torch.inf)
        totals, places = totals.topk(beams, dim=1)
        parents, tokens = parents.gather(1, places), tokens.gather(1, places)
        paths = torch.cat([paths.gather(1, parents[..., None].expand(-1, -1, length - 1)), tokens[..., None]], dim=2)
        if _all_done(best, totals, max_len**length_penalty):
            break
        state = state.reorder((torch.arange(rows, device=device)[:, None] * beams + parents).flatten())
        new = tokens.reshape(-1, 1)
    return [path for _, path in best]


def _keep_finished(
    best: list[tuple[float, list[int]]],
    paths: Tensor,
    parents: Tensor,
    tokens: Tensor,
    totals: Tensor,
    ended: Tensor,
    end_id: int,
    divisor: float,
) -> None:
    """Remember the hypotheses that have just ended, where they are better than the best before them."""
    for row, place in ended.nonzero().tolist():
        score = float(totals[row, place]) / divisor
        if score > best[row][0]:
            path = paths[row, parents[row, place]].tolist()
            token = int(tokens[row, place])
            best[row] = (score, path if token == end_id else [*path, token])


def _all_done(best: list[tuple[float, list[int]]], totals: Tensor, divisor: float) -> bool:
    """Whether no open hypothesis can still win: its total only falls, and is at best divided by the longest length."""
    open_ones = totals.max(dim=1).values.tolist()
    return all(score >= total / divisor for (score, _), total in zip(best, open_ones, strict=True))
