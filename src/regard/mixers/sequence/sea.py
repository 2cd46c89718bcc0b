"""SEA: a linear estimate of the attention picks the few keys that each query then attends to exactly.

Paper: "SEA: Sparse Linear Attention with Estimated Attention Mask", Lee et al., ICLR 2024,
https://arxiv.org/abs/2310.01777, section 3 and figure 2.
Compared with gmlwns2000/sea-attention@5609413b, `src/models/perlin_attention` (its dense path).
Different from the code: with a mask, padding has no influence (there, it enters the bidirectional estimate); of equal
estimates the first column is kept; rotary embedding and fewer key/value heads are offered, applied before everything
else. The estimate and the attention are computed in at least float32, because the choice of keys is discrete. What
differs inside is told in `regard.layers.estimated_attention` and `regard.layers.attention_estimator`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer, load_strictly, take_tokens
from regard.layers.attention_estimator import EstimatorSizes, Memory
from regard.layers.estimated_attention import EstimatedAttention, estimated_attention_macs
from regard.layers.low_rank import LowRankChange
from regard.layers.perlin_names import mixer_reference_name
from regard.layers.sea_state import SeaState, empty_sea_state
from regard.layers.wide_precision import wide_linear
from regard.metadata import Example, No, Paper, Traits
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.column_choice import Pooling
from regard.ops.estimated_attention import Form
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.precision import compute_dtype
from regard.ops.rotary import check_rotary, rotate
from regard.ops.score_transfer import teacher_targets
from regard.registry import register

Heads = Float[Tensor, "batch heads tokens head_dim"]
KeyHeads = Float[Tensor, "batch kv_heads tokens head_dim"]


@register(
    name="sea",
    system="sea",
    paper=Paper(
        title="SEA: Sparse Linear Attention with Estimated Attention Mask",
        authors="Lee et al.",
        venue="ICLR",
        year=2024,
        url="https://arxiv.org/abs/2310.01777",
        code="gmlwns2000/sea-attention@5609413b",
        where="section 3",
    ),
    traits=Traits(
        cross=No(
            "the estimate of a query's row starts from the query token's own value, which a context does not give"
        ),
        segments=No("the row decoder's convolutions and the columns of the estimate run over whole sequences"),
        bias=No("keys enter the estimate and the average before any score exists that a bias could be added to"),
        row_stochastic=No("gates scale the kept keys' weights, and without causality the average's do not sum to 1"),
        time="n",
        memory="n",
    ),
    example=Example(
        kwargs={
            "dim": 30,
            "num_heads": 3,
            "num_kv_heads": 1,
            "keys_per_query": 3,
            "estimate_width": 8,
            "max_positions": 311,
            "form": "gathered",
            "rope_base": 100.0,
        },
        batch=2,
        tokens=13,
    ),
)
class SEAAttention(SequenceMixer):
    """Sparse attention to keys that a linear estimate of the attention chooses.

    For each query and head, K columns stand for the visible keys; from Performer's attention (FAVOR+) a small
    convolutional decoder estimates their weights. The largest columns, `keys_per_query` keys a head on average, are
    kept; softmax over their keys, scaled and mixed with an average of all values, is the output. Training it from a
    trained softmax attention is the intended use: `from_softmax`, then `lesson` or `transfer_loss`. Only
    these teach the estimate's decoder; a task's own loss gives it no gradient where `causal=True`.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`; heads are at least 2 wide.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future.
        keys_per_query: k, keys that are kept per query and head on average.
        estimate_width: K, columns of the estimate; a multiple of 4 (causal) or of 2.
        pooling: what shares a budget of columns: "causal_batch" = all heads of a query; without causality also
            "query" = nothing, "head" = all queries of a head, "batch" = everything (both always as a masked square).
        oversample: factor of the budget, whose keys are then thinned out again.
        feature_divisor: Performer has int(d ln d / feature_divisor) features.
        redraw_interval: training calls after which Performer's directions are drawn anew; None = never.
        max_positions: the longest causal sequence, in tokens (a learned table).
        jitter: share of causal training calls in which keys' positions are moved at random by up to 0.75.
        form: "gathered" (kept keys alone, linear), "square" (masked scores of all keys), "auto" (what is faster).
        qkv_bias: bias in the three input projections.
        rope_base: base of the rotary embedding; None = no positions beside the estimate's.
        lora_rank: rank of a trainable change of the three input projections; None = none.

    Raises:
        ValueError: sizes that do not fit, an unknown option, or causality with a pooling over queries.

    Cost: linear in the number of tokens for fixed k and K: about H (2 H k d) MACs per token for the kept keys (every
    head of a query meets the keys of all heads), and H d (4 r + 6 d) for the estimate, r random features.
    """

    teacher_weight: ClassVar[float] = 1.0
    """The paper's finetuning asks for the teacher's logits as much as for the task."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = False,
        keys_per_query: int = 64,
        estimate_width: int = 128,
        pooling: Pooling = "causal_batch",
        oversample: float = 1.0,
        feature_divisor: float = 1.0,
        redraw_interval: int | None = 1000,
        max_positions: int = 2048,
        jitter: float = 0.1,
        form: Form = "auto",
        qkv_bias: bool = False,
        rope_base: float | None = None,
        lora_rank: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        self.rope_base = rope_base
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)
        widths = (dim, kv_width, kv_width)
        self.q_lora, self.k_lora, self.v_lora = (
            None if lora_rank is None else LowRankChange(dim, width, lora_rank) for width in widths
        )
        self.attention = EstimatedAttention(
            EstimatorSizes(
                num_heads=num_heads,
                head_dim=self.head_dim,
                causal=causal,
                keys_per_query=keys_per_query,
                estimate_width=estimate_width,
                pooling=pooling,
                oversample=oversample,
                feature_divisor=feature_divisor,
                redraw_interval=redraw_interval,
                max_positions=max_positions,
                jitter=jitter,
                form=form,
            )
        )

    @classmethod
    def from_softmax(
        cls,
        teacher: SoftmaxAttention,
        *,
        keys_per_query: int = 64,
        estimate_width: int = 128,
        feature_divisor: float = 1.0,
        max_positions: int = 2048,
        form: Form = "auto",
        lora_rank: int | None = None,
    ) -> SEAAttention:
        """Convert trained softmax attention: its projections, with a new estimate to distil.

        Args:
            teacher: what to convert; it is not changed.
            keys_per_query: as for the class.
            estimate_width: as for the class.
            feature_divisor: as for the class.
            max_positions: as for the class.
            form: as for the class.
            lora_rank: as for the class.
        """
        converted = cls(
            teacher.dim,
            num_heads=teacher.num_heads,
            num_kv_heads=teacher.num_kv_heads,
            causal=teacher.causal,
            keys_per_query=keys_per_query,
            estimate_width=estimate_width,
            feature_divisor=feature_divisor,
            max_positions=max_positions,
            form=form,
            qkv_bias=teacher.q_proj.bias is not None,
            rope_base=teacher.rope_base,
            lora_rank=lora_rank,
        ).to(teacher.q_proj.weight)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(converted, name).load_state_dict(getattr(teacher, name).state_dict())
        return converted

    def inert_parameters(self) -> set[str]:
        """Choosing keys has no gradient, so that a causal estimate's decoder gets none from the output."""
        return {f"attention.{name}" for name in self.attention.inert_parameters()}

    def estimate_parameters(self) -> Iterator[nn.Parameter]:
        """What is new against the teacher: the estimate's parameters and, where there are any, the low-rank changes."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and name.startswith(("attention.", "q_lora.", "k_lora.", "v_lora.")):
                yield parameter

    def project(
        self, x: Float[Tensor, "batch tokens dim"], *, positions: Int[Tensor, "#batch tokens"] | None = None
    ) -> tuple[Heads, KeyHeads, KeyHeads]:
        """Queries, keys and values as `attention` takes them, in at least float32.

        Args:
            x: the layer's input.
            positions: of the tokens; None = from 0 on.
        """
        return self._projected(x, positions)

    def _projected(
        self, x: Tensor, positions: Tensor | None, *, frozen: bool = False, changed: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """With `frozen`, no gradient for the full-rank maps; without `changed`, no low-rank changes."""
        x = x.to(compute_dtype(x))
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        found = []
        for name, count in zip("qkv", heads, strict=True):
            y, change = wide_linear(x, getattr(self, f"{name}_proj")), getattr(self, f"{name}_lora")
            y = y.detach() if frozen else y
            found.append(split_heads(y if change is None or not changed else y + change(x), count))
        q, k, v = found
        if self.rope_base is not None:
            rows = torch.arange(x.shape[1], device=x.device)[None] if positions is None else positions
            q, k = rotate(q, rows, base=self.rope_base), rotate(k, rows, base=self.rope_base)
        return (q * self.head_dim**-0.5 if self.causal else q), k, v

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Heads:
        """Estimate, choose, attend, mix with the average."""
        # padding lies to the right of every real token, so causality already hides it
        mixed: Tensor = self.attention(*self.project(x), mask=None if self.causal else mask)
        return mixed.to(x.dtype)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def init_state(self, batch: int, *, max_len: int | None = None) -> SeaState:
        """An empty cache beside an estimate of nothing; without `max_len` the cache grows by doubling."""
        if not self.causal:
            raise ValueError("init_state needs causal=True: a bidirectional mixer has no past to decode from")
        return empty_sea_state(
            batch, attention=self.attention, num_kv_heads=self.num_kv_heads, max_len=max_len, like=self.k_proj.weight
        )

    def mix_step(self, x: Tensor, state: SeaState, *, mask: Tensor | None) -> tuple[Heads, SeaState]:
        """New tokens: their estimate from the state's, then their kept keys out of the cache."""
        tokens = x.shape[1]
        q, k, v = self.project(x, positions=state.position[:, None] + torch.arange(tokens, device=x.device))
        cache = state.cache.append(k, v, mask)
        memory = Memory(state.sums, state.first_rows, state.second_rows)
        estimate, after = self.attention.estimate.step(
            q, k, v, memory, first=state.position, mask=mask, longest=cache.filled
        )
        counted = v if mask is None else torch.where(mask[:, None, :, None], v, 0)
        running = state.value_sum[:, :, None] + repeat_heads(counted, self.num_heads).cumsum(dim=2)
        mixed = self.attention.attend_step(
            q,
            cache.keys,
            cache.values,
            estimate,
            first=state.position,
            shortest=1 if cache.ragged else cache.filled - tokens + 1,
            longest=cache.filled,
            value_sum=running,
        )
        return mixed.to(x.dtype), SeaState(cache.position, cache, *after, value_sum=running[:, :, -1])

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """Scaled weights of the kept keys and those of the average."""
        return self.attention.weights(*self.project(x), mask=None if self.causal else mask)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        return repeat_heads(self.project(x)[2], self.num_heads).to(x.dtype)

    # -- what is interpretable

    def estimated_map(
        self, x: Float[Tensor, "batch tokens dim"], *, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The estimate of the whole attention map: each key has its column's weight; masked rows and columns are 0.

        The columns of a row sum to 1, so the keys' weights sum to 1 only where there are as many keys as columns.

        Args:
            x: the layer's input.
            mask: True = real token.

        Raises:
            ValueError: shapes that do not fit, or more tokens than `max_positions`.
        """
        return self._square(x, mask, self.attention.estimated_map)

    def kept_map(
        self, x: Float[Tensor, "batch tokens dim"], *, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Bool[Tensor, "batch heads tokens keys"]:
        """Which keys each query attends to; arguments and errors as for `estimated_map`."""
        return self._square(x, mask, self.attention.keep)

    def _square(self, x: Tensor, mask: Tensor | None, make: Any) -> Tensor:
        self._check_arguments(x, None, mask, None, None)
        if mask is None:
            square: Tensor = make(self.attention.estimate(*self.project(x)))
            return square
        x, packed, _, _, order = self._pack(x, mask, None, None)
        inner = None if self.causal else packed
        square = make(self.attention.estimate(*self.project(x), mask=inner), mask=inner)
        back = torch.argsort(order, dim=1)
        square = take_tokens(take_tokens(square, back, dim=2), back, dim=3)
        return torch.where(mask[:, None, None, :] & mask[:, None, :, None], square, 0).to(square.dtype)

    # -- learning from a teacher

    def lesson(
        self,
        x: Float[Tensor, "batch tokens dim"],
        teacher_q: Heads,
        teacher_k: Float[Tensor, "batch kv_heads tokens head_dim"],
        teacher_v: Float[Tensor, "batch kv_heads tokens value_dim"],
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, ""]]:
        """The layer's output, and its share of a distillation: estimate, scores and output against softmax attention's.

        0.1 KL + mean squared error between the teacher's weights and the softmax of the estimate, resized to all
        keys; the same for the layer's own scores; and the mean squared error of the outputs before `o_proj`. To be
        called layer by layer on what enters each layer, in place of `forward`. Quadratic in the number of tokens.

        Args:
            x: the layer's input.
            teacher_q: the teacher's queries after rotary embedding, not divided by sqrt(d); no gradient goes there.
            teacher_k: the teacher's keys after rotary embedding; their heads may be fewer.
            teacher_v: the teacher's values, as wide as the layer's.
            mask: True = real token; the padding must lie at the right.

        Raises:
            ValueError: shapes that do not fit, padding elsewhere, or more tokens than `max_positions`.
        """
        self._check_lesson(x, mask)
        wanted = (x.shape[0], self.num_heads, x.shape[1], self.head_dim)
        if tuple(teacher_q.shape) != wanted:
            raise ValueError(f"the teacher's queries have shape {tuple(teacher_q.shape)}, they must have {wanted}")
        scores, context = teacher_targets(teacher_q, teacher_k, teacher_v, causal=self.causal, mask=mask)
        mixed, loss = self.attention.lesson(*self.project(x), scores, context, mask=mask)
        y = self.out(mixed.to(x.dtype), x)
        return y if mask is None else torch.where(mask[..., None], y, 0), loss

    def distillation_loss(
        self,
        x: Float[Tensor, "batch tokens dim"],
        teacher_q: Heads,
        teacher_k: Float[Tensor, "batch kv_heads tokens head_dim"],
        teacher_v: Float[Tensor, "batch kv_heads tokens value_dim"],
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of `lesson`, which has the same arguments and errors and also gives the output."""
        return self.lesson(x, teacher_q, teacher_k, teacher_v, mask=mask)[1]

    def transfer_loss(
        self, x: Float[Tensor, "batch tokens dim"], *, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, ""]:
        """The loss of `lesson` with softmax attention of the layer's own projections as the teacher.

        Only `estimate_parameters` get a gradient; the teacher has no low-rank changes.

        Args:
            x: the layer's input.
            mask: True = real token; the padding must lie at the right.

        Raises:
            ValueError: as for `lesson`.
        """
        self._check_lesson(x, mask)
        with torch.no_grad():
            q, k, v = self._projected(x, None, changed=False)
        own = (q, k, v) if self.q_lora is None else self._projected(x, None, frozen=True)
        teacher_q = q * self.head_dim**0.5 if self.causal else q
        scores, context = teacher_targets(teacher_q, k, v, causal=self.causal, mask=mask)
        return self.attention.lesson(*own, scores, context, mask=mask)[1]

    def _check_lesson(self, x: Tensor, mask: Tensor | None) -> None:
        self._check_arguments(x, None, mask, None, None)
        if mask is not None and not bool((mask[:, 1:] <= mask[:, :-1]).all()):
            raise ValueError("the mask of a distillation must be True on a prefix of each row: pad at the right")

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the compared code's layout of a decoder's attention: projections beside `perlin_self_attention`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor has the wrong shape.
        """
        inner, own = {}, {}
        prefix = "perlin_self_attention.attention."
        for name, tensor in state_dict.items():
            if name.startswith(prefix):
                inner[name.removeprefix(prefix)] = tensor
            elif self.q_lora is not None or "_lora." not in name:
                own[mixer_reference_name(name)] = tensor
        self.attention.load_reference(inner)
        kept = {f"attention.{name}": tensor for name, tensor in self.attention.state_dict().items()}
        load_strictly(self, {**own, **kept})

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Projections, the estimate and the attention in its form."""
        head_dim = options.dim // options.num_heads
        kv_width = head_dim * (options.num_kv_heads or options.num_heads)
        sizes = EstimatorSizes(
            num_heads=options.num_heads,
            head_dim=head_dim,
            causal=options.causal,
            keys_per_query=options.keys_per_query,
            estimate_width=options.estimate_width,
            pooling=options.pooling,
            oversample=options.oversample,
            feature_divisor=options.feature_divisor,
            form=options.form,
        )
        projections = 2 * options.dim * (options.dim + kv_width)
        if options.lora_rank is not None:
            projections += options.lora_rank * (4 * options.dim + 2 * kv_width)
        return batch * (tokens * projections + estimated_attention_macs(sizes, tokens))
