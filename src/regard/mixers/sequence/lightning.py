"""Lightning attention: decayed linear attention without a normaliser, in blocks, with TNL's norm and output gate.

Papers: "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language Models", Qin et
al., 2024, https://arxiv.org/abs/2401.04658, algorithm 1 (the operator, with decay); "Various Lengths, Constant Speed:
Efficient Language Modeling with Lightning Attention", Qin et al., ICML 2024, https://arxiv.org/abs/2405.17381,
equation 10 (the operator, without decay, and the layer around it, TNL).
Compared with OpenNLPLab/lightning-attention@d15c3852, `lightning_attn/ops/torch/linear_attention.py` and
`examples/module/tnl_attn.py` (`TnlAttention`), whose choices are the defaults here.
Different from the code: any head width (the code's check accepts 20 and refuses 16), a final state that is right
after a short last block, a layer factor for networks of one layer. The paper's layer differs from the code: it has no
activation on the values, SRMSNorm instead of LayerNorm, and a full-rank gate without activation; all are options.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from regard.contract import SequenceMixer
from regard.layers.linear_state import LinearState, empty_state
from regard.metadata import Example, No, Paper, Traits
from regard.ops.decay import Decay, decay_slopes
from regard.ops.heads import head_width, merge_heads, split_heads
from regard.ops.linear_attention import linear_attention, linear_attention_macs, linear_attention_weights
from regard.ops.linear_blocks import BLOCK
from regard.ops.norms import simple_rms_norm
from regard.registry import register


@register(
    name="lightning",
    system="lightning",
    paper=Paper(
        title="Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language Models",
        authors="Qin et al.",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2401.04658",
        code="OpenNLPLab/lightning-attention@d15c3852",
        where="algorithms 1 and 2; layer and no-decay form: arXiv 2405.17381",
    ),
    traits=Traits(
        bidirectional=No("the operator is causal: its decay is defined over the past alone"),
        cross=No("the operator is causal: a context has no order relative to x"),
        bias=No("the blocks before a query are summed up in a state, which has no scores to add to"),
        row_stochastic=No("scores are signed and no normaliser divides them"),
        time="n",
        memory="n",
    ),
    example=Example(kwargs={"dim": 21, "num_heads": 3, "block_size": 5}, batch=2, tokens=13),
)
class LightningAttention(SequenceMixer):
    """Lightning attention in TNL's layer: constant time per token at any length.

    o_i = sum_{j <= i} exp(-s_h (i - j)) (q_i . k_j) v_j with q, k, v = silu(x W_q), silu(x W_k), silu(x W_v);
    y = (norm(o) * gate(x)) W_o.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        causal: True; there is no other form.
        decay: slopes s_h: "tnl", the code's ALiBi slopes with a layer factor; "paper", 8 h / H with a layer factor;
            "none", no decay.
        layer_idx: number of this layer in its network, from 0; later layers decay less.
        num_layers: number of layers of the network.
        value_activation: silu on the values too.
        norm: "layernorm" (affine) or "srmsnorm" (without parameters), over all heads.
        gate: "low_rank", through `dim / num_heads` channels, or "full_rank".
        gate_activation: "sigmoid" or "none".
        bias: bias in all projections.
        block_size: tokens in a block; None = the fastest.

    Raises:
        ValueError: sizes that do not divide, `causal=False`, or an unknown option.

    Cost: projections, and heads * (block * (d + e) + 2 * d * e) MACs per token.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        decay: Decay = "tnl",
        layer_idx: int = 0,
        num_layers: int = 1,
        value_activation: bool = True,
        norm: Literal["layernorm", "srmsnorm"] = "layernorm",
        gate: Literal["low_rank", "full_rank"] = "low_rank",
        gate_activation: Literal["sigmoid", "none"] = "sigmoid",
        bias: bool = False,
        block_size: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        _check_choice("norm", norm, ("layernorm", "srmsnorm"))
        _check_choice("gate", gate, ("low_rank", "full_rank"))
        _check_choice("gate_activation", gate_activation, ("sigmoid", "none"))
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be positive, got {block_size}")
        self.slopes = decay_slopes(num_heads, decay=decay, layer_idx=layer_idx, num_layers=num_layers)
        self.value_activation = value_activation
        self.gate_activation = gate_activation
        self.block_size = block_size
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.norm = nn.LayerNorm(dim) if norm == "layernorm" else None
        widths = (dim, self.head_dim, dim) if gate == "low_rank" else (dim, dim)
        self.output_gate = nn.Sequential(*(nn.Linear(*pair, bias=bias) for pair in pairwise(widths)))
        self.o_proj = nn.Linear(dim, dim, bias=bias)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = split_heads(silu(self.q_proj(x)), self.num_heads)
        k = split_heads(silu(self.k_proj(x)), self.num_heads)
        return q, k, self.values(x)

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """The operator, in blocks; padding is in the future, so a mask changes nothing."""
        q, k, v = self._project(x)
        return linear_attention(q, k, v, slopes=self.slopes, segments=segments, block_size=self.block_size)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads, normalise, gate and project."""
        merged = merge_heads(mixed)
        merged = simple_rms_norm(merged) if self.norm is None else self.norm(merged)
        gate = self.output_gate(x)
        return self.o_proj(merged * (torch.sigmoid(gate) if self.gate_activation == "sigmoid" else gate))

    def init_state(self, batch: int, *, max_len: int | None = None) -> LinearState:
        """A state of constant size; `max_len` changes nothing."""
        width = self.head_dim
        return empty_state(
            batch,
            num_heads=self.num_heads,
            head_dim=width,
            value_dim=width,
            normalised=False,
            like=self.k_proj.weight,
        )

    def mix_step(self, x: Tensor, state: LinearState, *, mask: Tensor | None) -> tuple[Tensor, LinearState]:
        """New tokens after those of the state."""
        q, k, v = self._project(x)
        return state.step(q, k, v, slopes=self.slopes, mask=mask, block_size=self.block_size)

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The decayed scores, signed."""
        q, k, _ = self._project(x)
        return linear_attention_weights(q, k, slopes=self.slopes, segments=segments)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, after their activation."""
        v = self.v_proj(x)
        return split_heads(silu(v) if self.value_activation else v, self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, the gate's and the blocks'."""
        dim, head_dim = options.dim, options.dim // options.num_heads
        gate = 2 * dim * head_dim if options.gate == "low_rank" else dim**2
        operator = linear_attention_macs(
            queries=tokens,
            keys=tokens,
            head_dim=head_dim,
            value_dim=head_dim,
            causal=True,
            normalised=False,
            block_size=options.block_size or BLOCK,
        )
        return batch * (tokens * (4 * dim**2 + gate) + options.num_heads * operator)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
