"""RMHA: attention with Transformer-XL's relative positions, a learned vector per distance. RCMHA without convolutions.

Paper: "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", Dai et al., ACL 2019,
https://arxiv.org/abs/1901.02860, section 3.3. It is what "RCMHA", Sugiharto et al., 2023,
https://arxiv.org/abs/2308.03429, compares with and calls RMHA, as labml_nn's `transformers/xl` has it.
Different from Transformer-XL's paper, as there: distances have learned vectors and numbers instead of projected
sinusoids (`urpe` offers these), so that the vector v of the paper is not needed. Its names of tensors are those that
RCMHA's code inherits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

from torch import Tensor

from regard.contract import load_strictly
from regard.layers.reference_names import rename_all
from regard.layers.xl_attention import XLAttention
from regard.metadata import Example, Paper, Traits
from regard.mixers.sequence.rcmha import NO_CROSS, REFERENCE_NAMES
from regard.registry import register

PLAIN_NAMES = (
    (r"(^|\.)query\.linear\.", r"\1q_proj."),
    (r"(^|\.)key\.linear\.", r"\1k_proj."),
    (r"(^|\.)value\.linear\.", r"\1v_proj."),
)
"""labml_nn's names of the projections, which no convolution follows."""


@register(
    name="rmha",
    system="rcmha",
    paper=Paper(
        title="Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context",
        authors="Dai et al.",
        venue="ACL",
        year=2019,
        url="https://arxiv.org/abs/1901.02860",
        where="section 3.3",
    ),
    traits=Traits(cross=NO_CROSS, time="n^2", memory="n"),
    example=Example(kwargs={"dim": 35, "num_heads": 5, "max_positions": 311}, batch=2, tokens=13, context=7),
)
class RMHA(XLAttention):
    """Relative multi-head attention: y_i = sum_j softmax_j(((q_i + u) . k_j + q_i . e_{j-i} + b_{j-i}) / sqrt(d)) v_j.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        causal: hide the future.
        max_positions: most tokens, memory included; the tables of e and b have twice as many rows.
        attn_drop: probability of dropping a weight in training.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not divide, or a size that is not positive.

    Cost: as `RCMHA`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        max_positions: int = 4096,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            causal=causal,
            relative=True,
            convolution="none",
            max_positions=max_positions,
            conv_state=False,
            qk_bias=False,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load labml_nn's layout.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape, such as tables of another number of positions.
        """
        load_strictly(self, rename_all(state_dict, (*PLAIN_NAMES, *REFERENCE_NAMES)))

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, and products with keys, distances and values."""
        return cls.macs_with(options, batch=batch, tokens=tokens, relative=True)
