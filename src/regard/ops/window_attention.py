"""Softmax attention inside a sliding window: the plain reference, and the fast path that folds windows into the batch.

Paper: "Longformer: The Long-Document Transformer", Beltagy, Peters and Cohan, 2020, https://arxiv.org/abs/2004.05150,
section 3.1. Query i sees the keys j with -before <= j - i <= after, where a window of w tokens reaches w // 2 to both
sides, and, if causal, w - 1 back (the query's own key is the w-th).

The fast path cuts the queries into blocks. A block needs its own keys and those that the window reaches beyond its
two ends, so each block is one small attention of its own under a band mask, and all blocks are rows of one batch: time
and memory are linear in the number of tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.precision import without_autocast
from regard.ops.softmax_attention import softmax_attention, softmax_attention_reference
from regard.ops.visibility import run_numbers, visible_keys

BLOCK = 64
"""Queries in a block are a multiple of this: with windows of 16 and 64 tokens, 128 took 1.6 and 1.2 times as long."""
HIDDEN = -1
"""Run number of keys that no query sees."""


def window_reach(window_size: int, *, causal: bool) -> tuple[int, int]:
    """How many keys before and after its own a query sees.

    Raises:
        ValueError: `window_size` is not positive.
    """
    if window_size < 1:
        raise ValueError(f"window_size must be positive, got {window_size}")
    return (window_size - 1, 0) if causal else (window_size // 2, window_size // 2)


def window_visible(
    queries: int,
    keys: int,
    *,
    window_size: int,
    causal: bool,
    mask: Bool[Tensor, "batch keys"] | None = None,
    segments: Int[Tensor, "batch tokens"] | None = None,
    device: torch.device,
) -> Bool[Tensor, "#batch 1 queries keys"]:
    """The whole map of visible keys; arguments as for `window_attention`. Quadratic."""
    before, after = window_reach(window_size, causal=causal)
    distance = torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device)[:, None]
    band = ((distance >= -before) & (distance <= after))[None, None]
    others = visible_keys(queries, keys, causal=False, mask=mask, segments=segments, device=device)
    return band if others is None else band & others


@without_autocast
def window_attention_reference(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    window_size: int,
    causal: bool,
    mask: Bool[Tensor, "batch keys"] | None = None,
    segments: Int[Tensor, "batch tokens"] | None = None,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Full attention under the whole map; 0 in rows that see nothing. Arguments as for `window_attention`."""
    visible = window_visible(
        q.shape[2],
        k.shape[2],
        window_size=window_size,
        causal=causal,
        mask=mask,
        segments=segments,
        device=q.device,
    )
    return softmax_attention_reference(q, k, v, visible=visible, bias=bias)


@without_autocast
def window_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    window_size: int,
    causal: bool,
    mask: Bool[Tensor, "batch keys"] | None = None,
    segments: Int[Tensor, "batch tokens"] | None = None,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Attention in windows in linear time and memory; equals `window_attention_reference`.

    Args:
        q: queries; the last one stands at the last key.
        k: keys, at least as many as queries; their heads may be fewer than the queries' (grouped-query attention).
        v: values.
        window_size: tokens in a window: a causal query sees the last `window_size` keys, its own included, any other
            query `window_size // 2` keys on each side of its own.
        causal: hide the future.
        mask: True = real key. The result is undefined, but finite, in rows that see nothing.
        segments: packed sequences, which never see each other; needs as many queries as keys.
        bias: added to the scores; only what lies inside the windows has any effect.

    Raises:
        ValueError: a window that is not positive, or shapes that do not fit.
    """
    before, after = window_reach(window_size, causal=causal)
    queries, keys = q.shape[2], k.shape[2]
    _check(q, k, v, mask, segments, bias)
    whole = before >= keys - 1 and mask is None and segments is None
    if whole and queries == keys and bias is None:
        return softmax_attention(q, k, v, causal=causal)
    blocks = _Blocks(queries, keys, before=before, after=after)
    runs = torch.zeros(1, keys, dtype=torch.int64, device=q.device) if segments is None else run_numbers(segments)
    visible = blocks.visible(runs if mask is None else torch.where(mask, runs, HIDDEN), runs)
    mixed = softmax_attention(
        blocks.fold_queries(q),
        blocks.fold_keys(k),
        blocks.fold_keys(v),
        visible=visible.expand(q.shape[0], -1, -1, -1).flatten(0, 1)[:, None],
        bias=None if bias is None else blocks.fold_bias(bias, q.shape[0]),
    )
    return blocks.unfold(mixed, q.shape[0])


def window_attention_macs(*, queries: int, head_dim: int, value_dim: int, window_size: int, causal: bool) -> int:
    """Contraction MACs of `window_attention` for one row and one head, with as many keys as queries."""
    before, after = window_reach(window_size, causal=causal)
    blocks = _Blocks(queries, queries, before=before, after=after)
    return blocks.number * blocks.size * blocks.span * (head_dim + value_dim)


class _Blocks:
    """Queries in `number` blocks of `size`, and for each the `span` keys around it.

    The queries are padded at the end to fill the last block; the keys are padded, or cut, so that their first stands
    `left` places before the first query and their last `right` places after the last.
    """

    def __init__(self, queries: int, keys: int, *, before: int, after: int) -> None:
        self.queries, self.past = queries, keys - queries
        self.before, self.after = before, after
        self.size = min(queries, BLOCK * max(1, -(-max(before, after) // BLOCK)))
        self.number = -(-queries // self.size)
        # one block reaches no further than the keys that there are
        self.left, self.right = (min(before, self.past), 0) if self.number == 1 else (before, after)
        self.span = self.left + self.size + self.right

    def _fill(self, x: Tensor, dim: int, value: float = 0) -> Tensor:
        """Keys on axis `dim`, padded or cut to `left + number * size + right`."""
        x = x.narrow(dim, max(0, self.past - self.left), self.queries + min(self.past, self.left))
        missing = (max(0, self.left - self.past), self.number * self.size - self.queries + self.right)
        return pad(x, (0, 0) * (x.ndim - 1 - dim) + missing, value=value)

    def fold_queries(self, q: Float[Tensor, "batch heads queries width"]) -> Float[Tensor, "rows heads size width"]:
        batch, heads, _, width = q.shape
        q = pad(q.transpose(1, 2), (0, 0, 0, 0, 0, self.number * self.size - self.queries))
        return q.reshape(batch * self.number, self.size, heads, width).transpose(1, 2)

    def fold_keys(self, k: Float[Tensor, "batch heads keys width"]) -> Float[Tensor, "rows heads span width"]:
        windows = self._fill(k.transpose(1, 2), 1).unfold(1, self.span, self.size)
        return windows.transpose(3, 4).flatten(0, 1)

    def fold_bias(
        self, bias: Float[Tensor, "#batch heads queries keys"], batch: int
    ) -> Float[Tensor, "rows heads size span"]:
        """The part of the bias around the diagonal, block by block."""
        rows = pad(self._fill(bias, 3), (0, 0, 0, self.number * self.size - self.queries))
        squares = rows.unflatten(2, (self.number, self.size)).unfold(4, self.span, self.size)
        own = squares.diagonal(dim1=2, dim2=4).movedim(-1, 1)
        return own.expand(batch, -1, -1, -1, -1).flatten(0, 1)

    def visible(
        self, of_keys: Int[Tensor, "#batch keys"], of_queries: Int[Tensor, "#batch keys"]
    ) -> Bool[Tensor, "#batch number size span"]:
        """Which keys of its block a query sees: near enough, and of its own run."""
        theirs = self._fill(of_keys, 1, HIDDEN).unfold(1, self.span, self.size)
        own = pad(of_queries[:, self.past :], (0, self.number * self.size - self.queries))
        together = own.unflatten(1, (self.number, self.size))[..., None] == theirs[:, :, None]
        device = of_keys.device
        distance = torch.arange(self.span, device=device) - torch.arange(self.size, device=device)[:, None] - self.left
        return together & (distance >= -self.before) & (distance <= self.after)

    def unfold(
        self, mixed: Float[Tensor, "rows heads size width"], batch: int
    ) -> Float[Tensor, "batch heads queries width"]:
        """Blocks of results as one sequence again, without the padding."""
        _, heads, _, width = mixed.shape
        tokens = mixed.transpose(1, 2).reshape(batch, self.number * self.size, heads, width)
        return tokens[:, : self.queries].transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            "q, k, v must have shapes (b, h, i, d), (b, g, j, d), (b, g, j, e), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q is {q.shape[3]} wide and k is {k.shape[3]}: they must be equal")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"there are {q.shape[1]} query heads and {k.shape[1]} key heads: the latter must divide")
    queries, keys = q.shape[2], k.shape[2]
    if not 1 <= queries <= keys:
        raise ValueError(f"there must be at least 1 query and as many keys, got {queries} queries and {keys} keys")
    if mask is not None and tuple(mask.shape) != (q.shape[0], keys):
        raise ValueError(f"mask has shape {tuple(mask.shape)}, it must be ({q.shape[0]}, {keys})")
    if segments is not None and (queries != keys or tuple(segments.shape) != (q.shape[0], keys)):
        raise ValueError(
            f"segments has shape {tuple(segments.shape)}, with {queries} queries and {keys} keys: "
            "segments speak of as many queries as keys"
        )
    wanted = (q.shape[0], q.shape[1], queries, keys)
    if bias is not None and (bias.ndim != 4 or bias.shape[0] not in (1, wanted[0]) or bias.shape[1:] != wanted[1:]):
        raise ValueError(f"bias has shape {tuple(bias.shape)}, it must be {wanted}, or 1 at the front")
