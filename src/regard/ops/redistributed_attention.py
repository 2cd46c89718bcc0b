"""Causal attention in which text after an image takes attention from sinks for the image's other tokens: the fast path.

Paper: "See What You Are Told: Visual Attention Sink in Large Multimodal Models", Kang et al., ICLR 2025,
https://arxiv.org/abs/2503.03321; rule and notation as in `regard.ops.visual_sinks`. A selected row changes by

    o' = o + (p - 1) sum_{j in S} a_j v_j + (1 - p) (sum_{j in S} a_j / sum_{j in N} a_j) sum_{j in N} a_j v_j

with the sinks S and the image's other tokens N: the row's weights are summed over three kinds of keys and multiplied by
a factor for each. So only rows that may be selected have their weights written: the single row while decoding, the text
after the image in a prompt, a block of rows at a time. All other rows go through the fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from regard.ops.precision import compute_dtype, product_dtype, without_autocast
from regard.ops.softmax_attention import see_something, softmax_attention, softmax_weights
from regard.ops.visual_sinks import SHARE_EPS, SinkRule, image_end, redistribute

ROWS = 128
"""Queries whose weights are written at once."""
KINDS = 3
"""Kinds of keys that are summed over: the image's other tokens, its sinks, all sinks."""
CONVERTED_BYTES = 1 << 21
"""Narrow keys or values that are made wide at once for a single row: memory that stays in the cache."""

Queries = Float[Tensor, "batch heads queries head_dim"]
Keys = Float[Tensor, "batch kv_heads keys head_dim"]
Values = Float[Tensor, "batch kv_heads keys value_dim"]
KeyMask = Bool[Tensor, "batch keys"]
Marks = Bool[Tensor, "batch marked"]
Bias = Float[Tensor, "#batch heads queries keys"]
Mixed = Float[Tensor, "batch heads queries value_dim"]
First = int | Int[Tensor, " batch"]


def redistributed_attention_reference(
    q: Queries,
    k: Keys,
    v: Values,
    rule: SinkRule,
    *,
    image: Marks,
    sinks: Marks,
    first: First | None = None,
    mask: KeyMask | None = None,
    bias: Bias | None = None,
) -> tuple[Mixed, Bool[Tensor, "batch heads queries"]]:
    """Write all weights, redistribute, weigh the values; also which rows were changed. As `redistributed_attention`."""
    keys = _keys(image, sinks, mask, first, q, k)
    visible = keys.visible(0, q.shape[2], k.shape[2])
    rows = keys.follow_image(0, q.shape[2])
    weights = softmax_weights(q, k, visible=visible, bias=bias)
    image, sinks = (pad(marks, (0, k.shape[2] - marks.shape[1])) for marks in (keys.image, keys.sinks))
    weights, selected = redistribute(weights, image, sinks, rule, rows=rows)
    mixed = weights @ v.to(weights.dtype).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return mixed.to(q.dtype), selected


@without_autocast
def redistributed_attention(
    q: Queries,
    k: Keys,
    v: Values,
    rule: SinkRule,
    *,
    image: Marks,
    sinks: Marks,
    first: First | None = None,
    mask: KeyMask | None = None,
    bias: Bias | None = None,
    text_start: int | None = None,
    scale: float | None = None,
) -> Mixed:
    """Causal attention with redistribution in the rows after the image; equals `redistributed_attention_reference`.

    Args:
        q: queries.
        k: keys; their heads may be fewer than the queries' (grouped-query attention).
        v: values.
        rule: which heads, and how much.
        image: which of the first keys are image tokens; several images count as one. Keys that came after the prompt
            may be left out, which saves time: they are neither image tokens nor sinks.
        sinks: which of as many keys are sinks, found where the prompt entered the layer.
        first: position of the first query of every row among the keys; None = the last query stands at the last key.
        mask: which keys are real. The result is undefined, but finite, in rows that see nothing.
        bias: added to the scores.
        text_start: so many queries at the beginning are known to stand before the image's end; None = look at the
            masks, which waits for the device.
        scale: of the scores; None = 1 / sqrt(d).

    Raises:
        ValueError: shapes that do not fit.
    """
    queries = q.shape[2]
    _check(q, k, v, image=image, sinks=sinks, mask=mask, text_start=text_start)
    if scale is not None:
        q = q * (scale * q.shape[3] ** 0.5)
    keys = _keys(image, sinks, mask, first, q, k)
    split = keys.before_text(queries) if text_start is None else text_start
    parts = [_plain(q[:, :, :split], k, v, keys, bias)] if split else []
    if queries - split > 1:
        # many rows read them: once for all blocks
        k, v = k.to(product_dtype(k)), v.to(product_dtype(v))
    for low, high in row_blocks(split, queries):
        parts.append(_explicit(q[:, :, low:high], k, v, keys, bias, low, rule))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def row_blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Borders of the blocks of rows whose weights are written at once."""
    for low in range(start, stop, ROWS):
        yield low, min(low + ROWS, stop)


def redistributed_macs(*, queries: int, text_start: int, heads: int, head_dim: int, value_dim: int) -> int:
    """Contraction MACs of one row of the batch, with as many keys as queries, hidden ones included.

    Args:
        queries: number of tokens.
        text_start: those before the image's end.
        heads: number of query heads.
        head_dim: width of queries and keys.
        value_dim: width of values.
    """
    pairs = sum((high - low) * high for low, high in row_blocks(text_start, queries))
    width = head_dim + value_dim
    return heads * (text_start**2 * width + pairs * (width + 2 * KINDS))


# --------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class _Keys:
    """What kind each key is, and where the queries stand among them."""

    image: Tensor
    sinks: Tensor
    mask: Tensor | None
    first: First
    count: int

    def visible(self, low: int, high: int, keys: int) -> Bool[Tensor, "#batch 1 rows keys"] | None:
        """Which of the first `keys` keys the queries from `low` up to `high` see; None = all."""
        places = torch.arange(keys, device=self.image.device)
        padding = None if self.mask is None else self.mask[:, None, None, :keys]
        if isinstance(self.first, int):
            if high - low == 1 and self.first + high == keys:
                return padding
            rows = torch.arange(self.first + low, self.first + high, device=places.device)[None, None, :, None]
        else:
            rows = (self.first[:, None] + torch.arange(low, high, device=places.device))[:, None, :, None]
        return places <= rows if padding is None else (places <= rows) & padding

    def seen(self, high: int) -> int:
        """So many keys are enough for the queries up to `high`."""
        return self.first + high if isinstance(self.first, int) else self.count

    def follow_image(self, low: int, high: int) -> Bool[Tensor, "batch rows"]:
        """Which of the queries from `low` up to `high` have all of an image before them."""
        if isinstance(self.first, int) and high - low == 1 and self.first + low >= self.image.shape[1] - 1:
            # the marks end with the row's own key or before it
            ended = self.first + low >= self.image.shape[1]
            return torch.ones_like(self.image[:, -1:]) if ended else ~self.image[:, -1:]
        end = image_end(self.image)[:, None]
        rows = torch.arange(low, high, device=end.device)
        places = rows + (self.first if isinstance(self.first, int) else self.first[:, None])
        return (places >= end) & (end > 0)

    def before_text(self, queries: int) -> int:
        """Queries at the beginning of which none follows an image that has sinks."""
        if queries == 1:
            # a single row costs less than looking
            return 0
        has_sinks = (self.image & self.sinks).any(dim=1, keepdim=True)
        return int((~(self.follow_image(0, queries) & has_sinks).any(dim=0)).sum())

    def kinds(self, keys: int, dtype: torch.dtype) -> Float[Tensor, "batch kinds marked"]:
        """1 where a key is of a kind, of the marked ones among the first `keys`."""
        image, sinks = self.image[:, :keys], self.sinks[:, :keys]
        # of two booleans the first is greater where it holds and the second does not
        return torch.stack((image > sinks, image & sinks, sinks), dim=1).to(dtype)


def _keys(image: Tensor, sinks: Tensor, mask: Tensor | None, first: First | None, q: Tensor, k: Tensor) -> _Keys:
    if mask is not None:
        image, sinks = image & mask[:, : image.shape[1]], sinks & mask[:, : image.shape[1]]
    return _Keys(image, sinks, mask, k.shape[2] - q.shape[2] if first is None else first, k.shape[2])


def _plain(q: Tensor, k: Tensor, v: Tensor, keys: _Keys, bias: Tensor | None) -> Mixed:
    """Causal attention, the first rows of it."""
    rows = q.shape[2]
    seen = keys.seen(rows)
    k, v = k[:, :, :seen], v[:, :, :seen]
    from_zero = isinstance(keys.first, int) and keys.first == 0
    if from_zero and keys.mask is None and bias is None:
        return softmax_attention(q, k, v, causal=True)
    if bias is not None:
        bias = bias[:, :, :rows, :seen]
    visible = keys.visible(0, rows, seen)
    return softmax_attention(q, k, v, visible=visible, bias=bias)


def _explicit(q: Tensor, k: Tensor, v: Tensor, keys: _Keys, bias: Tensor | None, low: int, rule: SinkRule) -> Mixed:
    """Rows whose weights are written and changed; query heads that share keys lie below each other."""
    batch, heads, rows, width = q.shape
    high = low + rows
    seen = keys.seen(high)
    dtype, product = compute_dtype(q), product_dtype(q)
    stacked = (q * width**-0.5).to(product).reshape(batch, k.shape[1], -1, width)
    scores = _scores(stacked, k[:, :, :seen]).view(batch, heads, rows, seen).to(dtype)
    if bias is not None:
        scores = scores + bias[:, :, low:high, :seen].to(dtype)
    visible = keys.visible(low, high, seen)
    if visible is not None:
        scores = scores.masked_fill(~see_something(visible), -torch.inf)
    kinds = keys.kinds(seen, dtype)
    marked = kinds.shape[2]
    weights = scores.softmax(dim=-1)
    changed = _reweighted(weights[..., :marked], kinds, keys.follow_image(low, high), rule)
    if weights.requires_grad:
        weights = torch.cat((changed, weights[..., marked:]), dim=3)
    else:
        weights[..., :marked] = changed
    mixed = _weighted_sum(weights.view(batch, k.shape[1], -1, seen).to(product), v[:, :, :seen])
    return mixed.view(batch, heads, rows, v.shape[3]).to(q.dtype)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    if k.dtype != q.dtype:
        return torch.cat([q @ part.to(q.dtype).transpose(2, 3) for part in k.split(_converted_keys(k), dim=2)], dim=3)
    # for a single row the keys are the matrix: with 8 heads of 64 the step was measured to be 2 to 6 % faster
    return (k @ q.transpose(2, 3)).transpose(2, 3) if q.shape[2] == 1 else q @ k.transpose(2, 3)


def _weighted_sum(weights: Tensor, v: Tensor) -> Tensor:
    if v.dtype == weights.dtype:
        return weights @ v
    keys = _converted_keys(v)
    pairs = zip(weights.split(keys, dim=3), v.split(keys, dim=2), strict=True)
    return sum((part @ narrow.to(part.dtype) for part, narrow in pairs), start=weights.new_zeros(()))


def _converted_keys(x: Tensor) -> int:
    return max(1, CONVERTED_BYTES // (4 * x.shape[0] * x.shape[1] * x.shape[3]))


def _reweighted(
    weights: Float[Tensor, "batch heads rows marked"],
    kinds: Float[Tensor, "batch kinds marked"],
    allowed: Bool[Tensor, "batch rows"],
    rule: SinkRule,
) -> Float[Tensor, "batch heads rows marked"]:
    """Add to each weight its product with the change of its kind, which is 0 in rows that are not selected."""
    sums = (weights.flatten(1, 2) @ kinds.transpose(1, 2)).view(*weights.shape[:3], KINDS)
    others, visual, every_sink = sums.unbind(dim=-1)
    total = others + visual
    counts = kinds.sum(dim=2)
    share = visual / (total + SHARE_EPS * counts[:, :2].sum(dim=1)[:, None, None])
    allowed = allowed & (counts[:, 1:2] > 0)
    selected = (share <= rule.rho) & (total >= rule.summ) & (others > 0) & allowed[:, None]
    gain = (1 - rule.p) * every_sink / torch.where(selected, others, 1)
    change = torch.stack((gain, torch.zeros_like(gain), torch.full_like(gain, rule.p - 1)), dim=-1)
    change = torch.where(selected[..., None], change, 0)
    return torch.addcmul(weights, weights, (change.flatten(1, 2) @ kinds).view_as(weights))


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    image: Tensor,
    sinks: Tensor,
    mask: Tensor | None,
    text_start: int | None,
) -> None:
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"keys and values must have equal batch, heads and length: {tuple(k.shape)}, {tuple(v.shape)}")
    if q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"queries {tuple(q.shape)} and keys {tuple(k.shape)} must have equal batch and width, and the heads of the "
            "keys must divide those of the queries"
        )
    marks = (k.shape[0], min(image.shape[-1], k.shape[2]))
    for name, given, wanted in (("image", image, marks), ("sinks", sinks, marks), ("mask", mask, k.shape[:3:2])):
        if given is not None and (tuple(given.shape) != tuple(wanted) or given.dtype != torch.bool):
            raise ValueError(
                f"{name} must be bool of shape {tuple(wanted)}, got {given.dtype} of shape {tuple(given.shape)}"
            )
    if text_start is not None and not 0 <= text_start <= q.shape[2]:
        raise ValueError(f"text_start must be between 0 and the number of queries {q.shape[2]}, got {text_start}")
