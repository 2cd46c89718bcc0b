"""Hedgehog: linear attention with trained feature maps that mimic the spiky, monotone weights of softmax.

Paper: "The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry", Zhang et al., ICLR 2024,
https://arxiv.org/abs/2402.04347, section 4.
Compared with HazyResearch/lolcats@375df84f, the authors' group's follow-up, which holds these maps:
`src/model/feature_map.py` and `src/model/linear_attention/linear_attention.py`.
Different from the code: matrices start as the identity, as in the paper, and features are computed in at least
float32. Not interchangeable with `fla.modules.feature_map.HedgehogFeatureMap`, which has one matrix with bias for all
heads and one softmax over [2 z, -2 z].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer, load_strictly, pack_rows, take_tokens
from regard.layers.feature_maps import Activation, HedgehogFeatureMap, Start, feature_width
from regard.layers.linear_state import LinearState, empty_state
from regard.metadata import Example, No, Paper, Traits
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.distillation import attention_transfer_loss, output_transfer_loss
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.linear_attention import linear_attention, linear_attention_macs, linear_attention_weights
from regard.ops.linear_blocks import BLOCK
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_weights
from regard.ops.visibility import run_starts, visible_keys
from regard.registry import register

NORMALISER_EPS = 1e-12
_REFERENCE_PREFIXES = {"feature_map_q.": "q_map.", "feature_map_k.": "k_map."}
_REFERENCE_NAMES = {"mlp.layer": "weight", "mlp.bias": "bias"}


@register(
    name="hedgehog",
    system="hedgehog",
    paper=Paper(
        title="The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry",
        authors="Zhang et al.",
        venue="ICLR",
        year=2024,
        url="https://arxiv.org/abs/2402.04347",
        code="HazyResearch/lolcats@375df84f",
        where="section 4",
    ),
    traits=Traits(
        bias=No("keys are summed up in a state, which has no scores to add to"),
        time="n",
        memory="n",
    ),
    example=Example(
        kwargs={"dim": 36, "num_heads": 6, "num_kv_heads": 3, "rope_base": 100.0, "block_size": 5},
        batch=2,
        tokens=13,
        context=7,
    ),
)
class HedgehogAttention(SequenceMixer):
    """Linear attention whose feature maps are trained to mimic softmax.

    y_i = sum_j a_ij v_j, a_ij = phi_q(q_i) . phi_k(k_j) / (sum_j phi_q(q_i) . phi_k(k_j) + 1e-12), over the visible
    keys j, where phi(x) = [f(x W_h), f(-x W_h)] with one matrix W_h per head, apart for queries and keys.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future.
        feature_map: f: "softmax_dim", "exp_dim", or, to compare, "relu" (T2R), "pos_elu", "taylor".
        feature_dim: width of x W_h; None = width of a head.
        fullspace: whether "softmax_dim" and "exp_dim" have the negated half.
        skip: x + x W_h instead of x W_h.
        map_bias: a trained scalar per head in the maps.
        stabilize: for "exp_dim", lower each token's exponents to at most 0, as the code does.
        tied: one map for queries and keys.
        start: the matrices at first: "identity" or "kaiming".
        form: "linear" or "quadratic" (the same map, built whole).
        qkv_bias: bias in the three input projections.
        out_bias: bias in the output projection.
        rope_base: base of the rotary embedding, applied before the maps; None = no positions.
        block_size: tokens in a block of the causal linear form; None = the fastest.

    Raises:
        ValueError: sizes that do not fit, or an unknown option.

    Cost: projections, the maps, and heads * (block * (f + e + 1) + 2 * f * (e + 1)) MACs per token, f features.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = False,
        feature_map: Activation = "softmax_dim",
        feature_dim: int | None = None,
        fullspace: bool = True,
        skip: bool = False,
        map_bias: bool = False,
        stabilize: bool = True,
        tied: bool = False,
        start: Start = "identity",
        form: Literal["linear", "quadratic"] = "linear",
        qkv_bias: bool = False,
        out_bias: bool = True,
        rope_base: float | None = None,
        block_size: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        if form not in ("linear", "quadratic"):
            raise ValueError(f"form must be linear or quadratic, got {form!r}")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be positive, got {block_size}")
        check_rotary(self.head_dim, rope_base)
        self.form, self.rope_base, self.block_size = form, rope_base, block_size
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim, bias=out_bias)

        def new_map() -> HedgehogFeatureMap:
            return HedgehogFeatureMap(
                num_heads,
                self.head_dim,
                activation=feature_map,
                feature_dim=feature_dim,
                fullspace=fullspace,
                skip=skip,
                bias=map_bias,
                stabilize=stabilize,
                start=start,
            )

        self.q_map = new_map()
        self.k_map = None if tied else new_map()

    @classmethod
    def from_softmax(
        cls,
        teacher: SoftmaxAttention,
        *,
        feature_map: Activation = "softmax_dim",
        feature_dim: int | None = None,
        fullspace: bool = True,
        skip: bool = False,
        tied: bool = False,
    ) -> HedgehogAttention:
        """Convert trained softmax attention: its projections, with new feature maps to distil.

        Args:
            teacher: what to convert; it is not changed.
            feature_map: as for the class.
            feature_dim: as for the class.
            fullspace: as for the class.
            skip: as for the class.
            tied: as for the class.
        """
        converted = cls(
            teacher.dim,
            num_heads=teacher.num_heads,
            num_kv_heads=teacher.num_kv_heads,
            causal=teacher.causal,
            feature_map=feature_map,
            feature_dim=feature_dim,
            fullspace=fullspace,
            skip=skip,
            tied=tied,
            qkv_bias=teacher.q_proj.bias is not None,
            rope_base=teacher.rope_base,
        ).to(teacher.q_proj.weight)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(converted, name).load_state_dict(getattr(teacher, name).state_dict())
        return converted

    def inert_parameters(self) -> set[str]:
        """A scalar that scales all features of a token alike cancels in the normaliser (and is lowered away)."""
        if self.q_map.bias is None or not self.q_map.bias_cancels:
            return set()
        return {"q_map.bias"} if self.k_map is None else {"q_map.bias", "k_map.bias"}

    def map_parameters(self) -> Iterator[nn.Parameter]:
        """The feature maps' parameters: all that is trained while distilling."""
        yield from self.q_map.parameters()
        if self.k_map is not None:
            yield from self.k_map.parameters()

    def _project(
        self, x: Tensor, source: Tensor, positions: Int[Tensor, "#batch tokens"] | None = None
    ) -> tuple[Tensor, Tensor]:
        q = split_heads(self.q_proj(x), self.num_heads)
        k = split_heads(self.k_proj(source), self.num_kv_heads)
        if self.rope_base is not None:
            rows = torch.arange(x.shape[1], device=x.device)[None] if positions is None else positions
            columns = rows if source is x else torch.arange(source.shape[1], device=x.device)[None]
            q, k = rotate(q, rows, base=self.rope_base), rotate(k, columns, base=self.rope_base)
        return q, repeat_heads(k, self.num_heads)

    def _features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_map(q), (self.q_map if self.k_map is None else self.k_map)(k)

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """The weighted mean, by the chosen form."""
        v = self.values(x, context=context)
        if self.form == "quadratic":
            weights = self.weights(x, context=context, mask=mask, segments=segments, bias=bias)
            return (weights @ v.to(weights.dtype)).to(v.dtype)
        q, k = self._features(*self._project(x, x if context is None else context, _positions_in_runs(segments)))
        return linear_attention(
            q.to(v.dtype),
            k.to(v.dtype),
            v,
            causal=self.causal,
            normaliser_eps=NORMALISER_EPS,
            mask=mask,
            segments=segments,
            block_size=self.block_size,
        )

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def init_state(self, batch: int, *, max_len: int | None = None) -> LinearState:
        """A state of constant size; `max_len` changes nothing."""
        return empty_state(
            batch,
            num_heads=self.num_heads,
            head_dim=self.q_map.width,
            value_dim=self.head_dim,
            normalised=True,
            like=self.k_proj.weight,
        )

    def mix_step(self, x: Tensor, state: LinearState, *, mask: Tensor | None) -> tuple[Tensor, LinearState]:
        """New tokens after those of the state."""
        positions = state.position[:, None] + torch.arange(x.shape[1], device=x.device)
        q, k = self._features(*self._project(x, x, positions))
        v = self.values(x)
        return state.step(
            q.to(v.dtype), k.to(v.dtype), v, normaliser_eps=NORMALISER_EPS, mask=mask, block_size=self.block_size
        )

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The normalised products of features."""
        q, k = self._features(*self._project(x, x if context is None else context, _positions_in_runs(segments)))
        return linear_attention_weights(
            q, k, causal=self.causal, normaliser_eps=NORMALISER_EPS, mask=mask, segments=segments
        )

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        source = x if context is None else context
        return repeat_heads(split_heads(self.v_proj(source), self.num_kv_heads), self.num_heads)

    def transfer_loss(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
        output_weight: float = 0.0,
    ) -> Float[Tensor, ""]:
        """The distillation loss on this layer's input: cross-entropy against softmax of the same, frozen projections.

        Only the feature maps get a gradient. Quadratic in the number of tokens.

        Args:
            x: the layer's input.
            mask: True = real token.
            output_weight: weight of the outputs' mean squared error, beside the cross-entropy; 1000 in LoLCATs.

        Raises:
            ValueError: shapes that do not fit, or a negative weight.
        """
        self._check_arguments(x, None, mask, None, None)
        if output_weight < 0:
            raise ValueError(f"output_weight must not be negative, got {output_weight}")
        rows = None
        if mask is not None:
            order, mask = pack_rows(mask)
            x, rows = take_tokens(x, order, dim=1), mask[:, None, :]
        with torch.no_grad():
            q, k = self._project(x, x)
            tokens = x.shape[1]
            visible = visible_keys(tokens, tokens, causal=self.causal, mask=mask, device=x.device)
            teacher = softmax_weights(q, k, visible=visible)
        student = linear_attention_weights(
            *self._features(q, k), causal=self.causal, normaliser_eps=NORMALISER_EPS, mask=mask
        )
        loss = attention_transfer_loss(teacher, student, rows=rows)
        if output_weight == 0:
            return loss
        v = self.values(x).detach().to(teacher.dtype)
        if rows is not None:
            teacher, student = teacher * rows[..., None], student * rows[..., None]
        return loss + output_weight * output_transfer_loss(teacher @ v, student @ v)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the layout of the compared code: `feature_map_q.mlp.layer` and so on beside the projections.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor has the wrong shape.
        """
        renamed = {}
        for name, tensor in state_dict.items():
            for theirs, ours in _REFERENCE_PREFIXES.items():
                inner = _REFERENCE_NAMES.get(name.removeprefix(theirs))
                if name.startswith(theirs) and inner is not None:
                    name = ours + inner
            renamed[name] = tensor
        load_strictly(self, renamed)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Projections, maps and the operator in its form."""
        dim, heads = options.dim, options.num_heads
        head_dim = dim // heads
        inner = options.feature_dim or head_dim
        features = feature_width(options.feature_map, head_dim=head_dim, feature_dim=inner, fullspace=options.fullspace)
        kv_width = head_dim * (options.num_kv_heads or heads)
        projections = 2 * tokens * dim**2 + 2 * keys * dim * kv_width
        maps = 0 if options.feature_map == "taylor" else (tokens + keys) * dim * inner
        if options.form == "quadratic":
            operator = tokens * keys * (features + head_dim)
        else:
            operator = linear_attention_macs(
                queries=tokens,
                keys=keys,
                head_dim=features,
                value_dim=head_dim,
                causal=options.causal,
                normalised=True,
                block_size=options.block_size or BLOCK,
            )
        return batch * (projections + maps + heads * operator)


def _positions_in_runs(segments: Int[Tensor, "batch tokens"] | None) -> Int[Tensor, "batch tokens"] | None:
    """Positions that start anew in every run: after a feature map, weights depend on positions, not on distances."""
    if segments is None:
        return None
    return torch.arange(segments.shape[1], device=segments.device) - run_starts(segments)


def added_parameters(*, num_heads: int, head_dim: int, feature_dim: int | None = None, num_layers: int = 1) -> int:
    """Parameters that untied maps without bias add to a network: 2 h d f in each layer.

    Args:
        num_heads: number of heads.
        head_dim: width of a head.
        feature_dim: width of x W_h; None = `head_dim`.
        num_layers: number of layers that are converted.
    """
    return num_layers * 2 * num_heads * head_dim * (head_dim if feature_dim is None else feature_dim)
