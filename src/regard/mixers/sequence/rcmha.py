"""RCMHA: attention with relative positions, behind depthwise convolutions of queries, keys and values.

Paper: "RCMHA: Relative Convolutional Multi-Head Attention for Natural Language Modelling", Sugiharto et al., 2023,
https://arxiv.org/abs/2308.03429. Compared with hermansh-id/rcmha@87df49bf,
`rcmha/attention.py:RelativeMultiHeadAttention` (its own training script builds labml_nn's class of the same name,
which has no convolutions: `rmha`).
Different from the code: batch first; its tables have 8,192 rows, here 2 `max_positions`; rows that see nothing are 0
instead of NaN. While decoding in steps, the queries' convolution begins anew at every call, as it does there at every
segment behind a memory; with `conv_state` it goes on, and steps equal one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

from torch import Tensor

from regard.contract import load_strictly
from regard.layers.reference_names import rename_all
from regard.layers.xl_attention import XLAttention
from regard.metadata import Example, No, Paper, Traits
from regard.registry import register

RCMHA_PAPER = Paper(
    title="RCMHA: Relative Convolutional Multi-Head Attention for Natural Language Modelling",
    authors="Sugiharto et al.",
    venue="arXiv",
    year=2023,
    url="https://arxiv.org/abs/2308.03429",
    code="hermansh-id/rcmha@87df49bf4bd88acb3fc48b8652769cf74ab79f80",
)
NO_CROSS = No("scores know the distance of two tokens, and a context has no order relative to x")
NO_SEGMENTS = No("convolutions of values reach over the borders of packed sequences, whatever the map hides")
NO_BIAS = No("a token is in the keys of the next two as well, so that no bias of scores speaks of it alone")
NO_EXACT_STEPS = No("the queries' convolution begins anew at every call; conv_state=True carries it on")

REFERENCE_NAMES = (
    (r"(^|\.)query\.0\.linear\.", r"\1q_proj."),
    (r"(^|\.)key\.0\.linear\.", r"\1k_proj."),
    (r"(^|\.)value\.0\.linear\.", r"\1v_proj."),
    (r"(^|\.)query\.1\.conv\.", r"\1q_conv."),
    (r"(^|\.)key\.1\.conv\.", r"\1k_conv."),
    (r"(^|\.)value\.1\.conv\.", r"\1v_conv."),
    (r"(^|\.)output\.", r"\1o_proj."),
    (r"(^|\.)key_pos_embeddings$", r"\1embeddings"),
    (r"(^|\.)key_pos_bias$", r"\1offset_bias"),
    (r"(^|\.)query_pos_bias$", r"\1content_bias"),
)
"""The authors' names of an attention layer as ours."""


@register(
    name="rcmha",
    system="rcmha",
    paper=RCMHA_PAPER,
    traits=Traits(
        cross=NO_CROSS, segments=NO_SEGMENTS, bias=NO_BIAS, step_exact=NO_EXACT_STEPS, time="n^2", memory="n"
    ),
    example=Example(kwargs={"dim": 35, "num_heads": 5, "max_positions": 311}, batch=2, tokens=13, context=7),
)
class RCMHA(XLAttention):
    """Relative convolutional multi-head attention.

    y_i = sum_j softmax_j(((q_i + u) . k_j + q_i . e_{j-i} + b_{j-i}) / sqrt(d)) v_j, where q, k and v are projections
    convolved along the sequence, with three taps to the past, by filters that the heads share.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        causal: hide the future.
        max_positions: most tokens, memory included; the tables of e and b have twice as many rows.
        conv_state: while decoding, the queries' convolution goes on where it was, so that steps equal one call; else
            it begins anew at every call, as in the compared code.
        attn_drop: probability of dropping a weight in training.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not divide, or a size that is not positive.

    Cost: 4 dim^2 MACs per token, and per head 3 * queries * keys * head_dim MACs, about half of that where causal;
    2 * max_positions * (dim + num_heads) parameters of positions.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        max_positions: int = 4096,
        conv_state: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            causal=causal,
            relative=True,
            convolution="shared",
            max_positions=max_positions,
            conv_state=conv_state,
            qk_bias=False,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape, such as tables of another number of positions.
        """
        load_strictly(self, rename_all(state_dict, REFERENCE_NAMES))

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, and products with keys, distances and values."""
        return cls.macs_with(options, batch=batch, tokens=tokens, relative=True)
