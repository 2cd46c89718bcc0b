"""SEA's estimate: for each query a row of K columns that stand for the keys it sees, in linear time.

Paper: "SEA: Sparse Linear Attention with Estimated Attention Mask", Lee et al., ICLR 2024,
https://arxiv.org/abs/2310.01777, section 3.1. Compared with gmlwns2000/sea-attention@5609413b
`src/models/perlin_attention/attention.py:PerlinAttention`.
Different from the code: with `as_compared=False` padding has no influence (there, padded keys count in Performer's
normaliser and padded rows in the convolutions), and gradients also flow through the maxima of the features' exponents.
Everything is computed in at least float32, because what it decides, the choice of keys, is discrete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from regard.layers.random_features import RandomFeatures
from regard.layers.row_decoder import CausalRowDecoder, RowDecoder
from regard.layers.wide_precision import wide_layer_norm, wide_linear
from regard.ops.column_choice import POOLINGS, Choice, Pooling
from regard.ops.estimated_attention import FORMS, Form
from regard.ops.heads import repeat_heads
from regard.ops.linear_attention import linear_attention_macs
from regard.ops.linear_blocks import BLOCK
from regard.ops.performer_features import feature_count, performer_attention, performer_attention_with_state
from regard.ops.precision import compute_dtype

SQUARE_UP_TO = 512
"""Keys up to which the masked square is always taken: at k = 16 both forms were measured to take 100 ms there."""
SQUARE_FACTOR = 16
"""Beyond, the gathered form is taken where a query keeps less than one in so many keys. Measured with k = 64, 4 heads
of 64: 239 ms against 286 for the gathered form at 1,024 keys, 791 against 559 at 2,048."""

Heads = Float[Tensor, "batch heads tokens head_dim"]
KeyHeads = Float[Tensor, "batch kv_heads keys head_dim"]
Mask = Bool[Tensor, "batch tokens"]


class Estimate(NamedTuple):
    """What is known before any key is looked at."""

    encoded: Float[Tensor, "batch heads queries encoded_dim"]
    """What each token knows of the attention."""
    scores: Float[Tensor, "batch heads queries columns"]
    probabilities: Float[Tensor, "batch heads queries columns"]
    """Their softmax, 0 for queries that are not real."""


class Memory(NamedTuple):
    """What the causal estimate needs of earlier tokens."""

    sums: Float[Tensor, "batch heads features state_dim"]
    """Performer's sums of features times values."""
    first_rows: Float[Tensor, "batch channels rows width"]
    second_rows: Float[Tensor, "batch channels rows width"]
    """The last rows before both convolutions."""


@dataclass(frozen=True, kw_only=True)
class EstimatorSizes:
    """What SEA's estimate is made of.

    Args:
        num_heads: number of query heads.
        head_dim: d, width of a head; at least 2.
        causal: hide the future.
        keys_per_query: k, keys that are kept per query and head on average.
        estimate_width: K, columns of the estimate; a multiple of 4 (causal) or 2.
        pooling: what shares a budget of columns: "causal_batch", "query", "head" or "batch".
        oversample: factor of the budget, whose keys are then thinned out again.
        feature_divisor: Performer has int(d ln d / feature_divisor) features.
        redraw_interval: training calls after which Performer's directions are drawn anew; None = never.
        max_positions: rows of the causal form's table of positions.
        jitter: share of the causal form's training calls in which keys' positions are moved at random.
        form: "square" (masked scores of all keys), "gathered" (kept keys alone) or "auto" (what is faster).
        as_compared: without causality, do what the compared code does: padding counts, and the maxima in the exponents
            of the features have no gradient.

    Raises:
        ValueError: a size or a share that does not fit.
    """

    num_heads: int
    head_dim: int
    causal: bool
    keys_per_query: int = 64
    estimate_width: int = 128
    pooling: Pooling = "causal_batch"
    oversample: float = 1.0
    feature_divisor: float = 1.0
    redraw_interval: int | None = 1000
    max_positions: int = 2048
    jitter: float = 0.1
    form: Form = "auto"
    as_compared: bool = False

    def __post_init__(self) -> None:
        if self.keys_per_query < 1:
            raise ValueError(f"keys_per_query must be at least 1, got {self.keys_per_query}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if self.causal and self.pooling != "causal_batch":
            raise ValueError(
                f"causal=True needs pooling='causal_batch', which looks at no later row, got {self.pooling!r}"
            )
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        choice = self.choice
        if self.form == "gathered" and not choice.bounded_rows:
            raise ValueError(f"form='gathered' needs a budget per query, got pooling={self.pooling!r}: use 'square'")
        if self.max_positions < 1 or not 0 <= self.jitter <= 1:
            raise ValueError(
                "max_positions must be positive and jitter a share, "
                f"got max_positions={self.max_positions} and jitter={self.jitter}"
            )

    @property
    def choice(self) -> Choice:
        """The budget of columns."""
        return Choice(
            heads=self.num_heads,
            columns=self.estimate_width,
            kept=self.keys_per_query,
            pooling=self.pooling,
            oversample=self.oversample,
        )

    def gathers(self, keys: int) -> bool:
        """Whether the gathered form is taken."""
        if self.form != "auto":
            return self.form == "gathered"
        return self.choice.bounded_rows and keys > max(SQUARE_UP_TO, SQUARE_FACTOR * self.keys_per_query)


class AttentionEstimator(nn.Module):
    """Estimates each query's attention, from Performer's attention over [positions, v].

    With C = Performer's attention and e = GELU(LayerNorm(W [C, v])), the row decoder turns e into scores of K columns.
    The positions are learned rows (causal), or the identity stretched over the tokens.

    Args:
        sizes: what it is made of.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(self, sizes: EstimatorSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.head_dim
        self.features = RandomFeatures(
            width,
            causal=sizes.causal,
            divisor=sizes.feature_divisor,
            redraw_interval=sizes.redraw_interval,
            constant_maxima=sizes.as_compared,
        )
        self.positions = nn.Parameter(torch.randn(sizes.max_positions, width)) if sizes.causal else None
        self.encoder = nn.Linear(3 * width, 2 * width)
        self.encoder_norm = nn.LayerNorm(2 * width)
        decoder = CausalRowDecoder if sizes.causal else RowDecoder
        self.decoder: CausalRowDecoder | RowDecoder = decoder(sizes.num_heads, 2 * width, sizes.estimate_width)

    def forward(self, q: Heads, k: KeyHeads, v: KeyHeads, *, mask: Mask | None = None) -> Estimate:
        """The estimate of every query's row.

        Args:
            q: queries.
            k: keys; their heads may be fewer than the queries'.
            v: values.
            mask: True on the prefix of each row that is real; causal estimates need not look at it.

        Raises:
            ValueError: more tokens than positions, with causality.
        """
        self._check_length(q.shape[2])
        q, k, v = widened_heads(q, k, v, mask=None if self.sizes.causal else mask)
        counted = None if self.sizes.as_compared else mask
        phi_q, phi_k = self.features(q, k, mask=counted)
        values = torch.cat((self._places(v, mask), v), dim=-1)
        context = performer_attention(phi_q, phi_k, values, causal=self.sizes.causal, mask=counted)
        encoded = self._encode(context, v)
        if isinstance(self.decoder, RowDecoder):
            scores = self.decoder(encoded, lengths=None if counted is None else counted.sum(dim=1))
        else:
            scores = self.decoder(encoded)
        probabilities = scores.softmax(dim=-1)
        if mask is not None and not self.sizes.causal:
            probabilities = torch.where(mask[:, None, :, None], probabilities, 0)
        return Estimate(encoded, scores, probabilities)

    def step(
        self,
        q: Heads,
        k: KeyHeads,
        v: KeyHeads,
        memory: Memory,
        *,
        first: Int[Tensor, " batch"],
        mask: Mask | None,
        longest: int,
    ) -> tuple[Estimate, Memory]:
        """The causal estimate of tokens that follow those in `memory`, and the memory after them.

        Args:
            q: queries.
            k: keys.
            v: values.
            memory: of earlier tokens.
            first: position of the first new token, in each row.
            mask: True on the prefix of each row that is real.
            longest: upper bound of the number of tokens, the new ones included.

        Raises:
            ValueError: more tokens than positions.
        """
        assert self.positions is not None
        assert isinstance(self.decoder, CausalRowDecoder)
        counts = torch.full_like(first, q.shape[2]) if mask is None else mask.sum(dim=1)
        if longest > len(self.positions) and not torch.compiler.is_compiling():
            # `longest` counts padding too; only here is looking at the device worth its cost
            self._check_length(int((first + counts).max()))
        q, k, v = widened_heads(q, k, v)
        phi_q, phi_k = self.features(q, k)
        places = (first[:, None] + torch.arange(q.shape[2], device=q.device)).clamp(max=len(self.positions) - 1)
        table = self.positions.to(v.dtype)[places][:, None].expand(-1, v.shape[1], -1, -1)
        context, sums = performer_attention_with_state(
            phi_q, phi_k, torch.cat((table, v), dim=-1), memory.sums, mask=mask
        )
        encoded = self._encode(context, v)
        scores, rows = self.decoder.step(encoded, (memory.first_rows, memory.second_rows), counts)
        return Estimate(encoded, scores, scores.softmax(dim=-1)), Memory(sums, *rows)

    def empty_memory(self, batch: int, like: Tensor) -> Memory:
        """What is known before the first token, on the device of `like`."""
        assert isinstance(self.decoder, CausalRowDecoder)
        dtype = compute_dtype(like)
        heads, width = self.sizes.num_heads, self.sizes.head_dim
        rows = [like.new_zeros(batch, *self.decoder.memory_shape, dtype=dtype) for _ in range(2)]
        sums = like.new_zeros(batch, heads, self.features.width, 2 * width + 1, dtype=dtype)
        return Memory(sums, rows[0], rows[1])

    # -- inside

    def _encode(self, context: Tensor, v: Tensor) -> Tensor:
        hidden = wide_linear(torch.cat((context, v), dim=-1), self.encoder)
        return gelu(wide_layer_norm(hidden, self.encoder_norm))

    def _places(self, v: Tensor, mask: Tensor | None) -> Tensor:
        """What tells Performer's values where they are: learned rows, or the identity stretched over the tokens."""
        batch, heads, tokens, width = v.shape
        if self.positions is not None:
            return self.positions[:tokens].to(v.dtype).expand(batch, heads, -1, -1)
        row = torch.arange(tokens, device=v.device, dtype=v.dtype)
        last = row.new_full((1, 1), tokens - 1) if mask is None else (mask.sum(dim=1) - 1).to(v.dtype)[:, None]
        place = row / last.clamp(min=1) * (width - 1)
        hat = (1 - (place[..., None] - torch.arange(width, device=v.device, dtype=v.dtype)).abs()).relu()
        return only_real(hat[:, None].expand(batch, heads, -1, -1), mask)

    def _check_length(self, tokens: int) -> None:
        if self.positions is not None and tokens > len(self.positions):
            raise ValueError(f"the causal form has max_positions={len(self.positions)} positions, got {tokens} tokens")


def widened_heads(q: Heads, k: KeyHeads, v: KeyHeads, *, mask: Mask | None = None) -> tuple[Heads, Heads, Heads]:
    """Queries, keys and values in at least float32, with as many heads; values are 0 where they are not real."""
    dtype = compute_dtype(q)
    k, v = (repeat_heads(x, q.shape[1]).to(dtype) for x in (k, v))
    return q.to(dtype), k, only_real(v, mask)


def only_real(x: Heads, mask: Mask | None) -> Heads:
    """`x`, with 0 at tokens that are not real."""
    return x if mask is None else torch.where(mask[:, None, :, None], x, 0)


def estimator_macs(sizes: EstimatorSizes, tokens: int) -> int:
    """Contraction MACs of an eager forward of `AttentionEstimator` for one row of the batch."""
    heads, width, columns = sizes.num_heads, sizes.head_dim, sizes.estimate_width
    features = feature_count(width, divisor=sizes.feature_divisor)
    operator = linear_attention_macs(
        queries=tokens,
        keys=tokens,
        head_dim=features,
        value_dim=2 * width + 1,
        causal=sizes.causal,
        normalised=False,
        block_size=BLOCK,
    )
    decoder = CausalRowDecoder if sizes.causal else RowDecoder
    inner, channels = columns // decoder.SCALE, decoder.CHANNELS * heads
    each = operator + tokens * (2 * width * features + 6 * width**2 + 2 * width * decoder.CHANNELS * inner)
    if sizes.causal:
        convolutions = tokens * inner * (2 * 9 * channels**2 + channels * heads)
    else:
        halves = (tokens + 1) // 2
        convolutions = halves * inner * (2 * 9 * channels**2 + 2 * 9 * channels * heads)
    return heads * each + convolutions
