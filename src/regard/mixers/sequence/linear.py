"""Linear attention with 1 + elu features and a normaliser: the naive baseline that later papers race.

Paper: "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", Katharopoulos et al., ICML 2020,
https://arxiv.org/abs/2006.16236, equations 4-9 (equation 7: the features) and 16-20 (the recurrence).
Not compared with the authors' CUDA code; the formula is restated in the tests.
"""

from __future__ import annotations

from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.linear_state import LinearState, empty_state
from regard.metadata import Example, No, Paper, Traits
from regard.ops.feature_maps import elu_features
from regard.ops.heads import head_width, merge_heads, split_heads
from regard.ops.linear_attention import linear_attention, linear_attention_macs, linear_attention_weights
from regard.ops.linear_blocks import BLOCK
from regard.registry import register

NORMALISER_EPS = 1e-12
"""Added to the sum of a row's weights, so that features that all underflow give 0; the paper's formula has none."""


@register(
    name="linear",
    system="linear",
    paper=Paper(
        title="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        authors="Katharopoulos et al.",
        venue="ICML",
        year=2020,
        url="https://arxiv.org/abs/2006.16236",
        where="equations 4-9 and 16-20",
    ),
    traits=Traits(
        bias=No("keys are summed up in a state, which has no scores to add to"),
        time="n",
        memory="n",
    ),
    example=Example(kwargs={"dim": 21, "num_heads": 3, "block_size": 5}, batch=2, tokens=13, context=7),
)
class LinearAttention(SequenceMixer):
    """Linear attention with the feature map 1 + elu.

    y_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j), phi(x) = 1 + elu(x), over the visible keys j.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        causal: hide the future.
        qkv_bias: bias in the three input projections.
        block_size: tokens in a block of the causal form; None = the fastest.

    Raises:
        ValueError: sizes that do not divide, or a block size that is not positive.

    Cost: projections, and heads * (block * (2 d + 1) + 2 * d * (d + 1)) MACs per token.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        qkv_bias: bool = False,
        block_size: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be positive, got {block_size}")
        self.block_size = block_size
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)

    def _features(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        q = elu_features(split_heads(self.q_proj(x), self.num_heads))
        k = elu_features(split_heads(self.k_proj(source), self.num_heads))
        return q, k

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """The weighted mean, in blocks or, without causality, through one sum over all keys."""
        q, k = self._features(x, x if context is None else context)
        v = self.values(x, context=context)
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
        width = self.head_dim
        return empty_state(
            batch, num_heads=self.num_heads, head_dim=width, value_dim=width, normalised=True, like=self.k_proj.weight
        )

    def mix_step(self, x: Tensor, state: LinearState, *, mask: Tensor | None) -> tuple[Tensor, LinearState]:
        """New tokens after those of the state."""
        q, k = self._features(x, x)
        v = self.values(x)
        return state.step(
            q.to(v.dtype), k.to(v.dtype), v, normaliser_eps=NORMALISER_EPS, mask=mask, block_size=self.block_size
        )

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The normalised products of features."""
        q, k = self._features(x, x if context is None else context)
        return linear_attention_weights(
            q, k, causal=self.causal, normaliser_eps=NORMALISER_EPS, mask=mask, segments=segments
        )

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values."""
        return split_heads(self.v_proj(x if context is None else context), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections and the operator."""
        head_dim = options.dim // options.num_heads
        operator = linear_attention_macs(
            queries=tokens,
            keys=keys,
            head_dim=head_dim,
            value_dim=head_dim,
            causal=options.causal,
            normalised=True,
            block_size=options.block_size or BLOCK,
        )
        return batch * (2 * (tokens + keys) * options.dim**2 + options.num_heads * operator)
