"""MDHA: Primer's multi-DConv-head attention, softmax attention behind depthwise convolutions. RCMHA without positions.

Paper: "Primer: Searching for Efficient Transformers for Language Modeling", So et al., NeurIPS 2021,
https://arxiv.org/abs/2109.08668, multi-DConv-head attention. Not compared with the authors' code; labml_nn's
`transformers/primer_ez`, with which "RCMHA", https://arxiv.org/abs/2308.03429, compares, shares filters between heads:
`shared_filters`.
"""

from __future__ import annotations

from types import SimpleNamespace

from regard.layers.xl_attention import XLAttention
from regard.metadata import Example, Paper, Traits
from regard.mixers.sequence.rcmha import NO_BIAS, NO_CROSS, NO_EXACT_STEPS, NO_SEGMENTS
from regard.registry import register


@register(
    name="mdha",
    system="rcmha",
    paper=Paper(
        title="Primer: Searching for Efficient Transformers for Language Modeling",
        authors="So et al.",
        venue="NeurIPS",
        year=2021,
        url="https://arxiv.org/abs/2109.08668",
        where="multi-DConv-head attention",
    ),
    traits=Traits(
        cross=NO_CROSS, segments=NO_SEGMENTS, bias=NO_BIAS, step_exact=NO_EXACT_STEPS, time="n^2", memory="n"
    ),
    example=Example(kwargs={"dim": 35, "num_heads": 5, "qkv_bias": True}, batch=2, tokens=13, context=7),
)
class MDHA(XLAttention):
    """Multi-DConv-head attention: y_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j, where q, k and v are convolved.

    The convolutions run along the sequence, with three taps to the past, channel by channel behind the projections.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        causal: hide the future.
        shared_filters: the heads have the same filters.
        conv_state: while decoding, the queries' convolution goes on where it was, so that steps equal one call; else
            it begins anew at every call.
        qkv_bias: bias in the projections of queries and keys (values always have one).
        attn_drop: probability of dropping a weight in training.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not divide, or a size that is not positive.

    Cost: as softmax attention, and 9 products per channel and token.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        shared_filters: bool = False,
        conv_state: bool = False,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            causal=causal,
            relative=False,
            convolution="shared" if shared_filters else "per_head",
            max_positions=1,
            conv_state=conv_state,
            qk_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, scores and weighted sum (the full square is counted)."""
        return cls.macs_with(options, batch=batch, tokens=tokens, relative=False)
