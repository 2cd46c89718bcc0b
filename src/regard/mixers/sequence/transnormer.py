"""TransNormerLLM's gated, normalised linear attention: decay and LRPE for positions, one norm over all heads, a gate.

Paper: "TransNormerLLM: A Faster and Better Large Language Model with Improved TransNormer", Qin et al., 2023,
https://arxiv.org/abs/2307.14995, section 3: LRPE with decay, gated linear attention, and robust inference (the
recurrence, whose every factor is at most 1).
Compared with weigao266/TNL-MoE@007576fe, `smoe/models/tnl/modeling_transnormer.py` (`NormLinearAttention`), the code
that OpenNLPLab/TransnormerLLM ships with its weights.
Different from the code: its one Linear of q, k, v and u is two here, `qkv` and the gate's `u_proj`, which act before
and after the operator (`load_reference` splits it); positions are counted in the state, in real tokens, so that any
number of tokens may follow a prefill (the code counts calls); padding is exact with LRPE too (the code counts it).
Different from the paper: its slopes are (8 h / H) (1 - l / L) (`decay="paper"`), those of the code and of the released
weights 2^(-8 h / H) (1 - l / (L - 1) + 1e-5).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from regard.contract import SequenceMixer, load_strictly
from regard.layers.linear_state import LinearState, empty_state
from regard.layers.norms import NormName, norm_by_name
from regard.metadata import Example, No, Paper, Traits
from regard.ops.decay import alibi_slopes, decay_slopes
from regard.ops.feature_maps import elu_features
from regard.ops.heads import head_width, merge_heads, split_heads
from regard.ops.linear_attention import linear_attention, linear_attention_macs, linear_attention_weights
from regard.ops.linear_blocks import BLOCK
from regard.ops.lrpe import lrpe, lrpe_frequencies
from regard.ops.visibility import run_starts
from regard.registry import register

LayerDecay = Literal["tnl", "constant", "paper", "none"]
DECAYS: tuple[LayerDecay, ...] = ("tnl", "constant", "paper", "none")
Activation = Literal["silu", "none", "elu"]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "none", "elu")

TRANSNORMER_PAPER = Paper(
    title="TransNormerLLM: A Faster and Better Large Language Model with Improved TransNormer",
    authors="Qin et al.",
    venue="arXiv",
    year=2023,
    url="https://arxiv.org/abs/2307.14995",
    code="weigao266/TNL-MoE@007576fe",
    where="section 3",
)

_REFERENCE_NAMES = {"out_proj.weight": "o_proj.weight", "out_proj.bias": "o_proj.bias", "lrpe.theta": "theta"}


@register(
    name="transnormer",
    system="transnormer",
    paper=TRANSNORMER_PAPER,
    traits=Traits(
        bidirectional=No("the operator is causal: its decay is defined over the past alone"),
        cross=No("the operator is causal: a context has no order relative to x"),
        bias=No("the blocks before a query are summed up in a state, which has no scores to add to"),
        row_stochastic=No("scores are signed and no normaliser divides them"),
        time="n",
        memory="n",
    ),
    example=Example(kwargs={"dim": 21, "num_heads": 3, "num_layers": 2, "block_size": 5}, batch=2, tokens=13),
)
class NormLinearAttention(SequenceMixer):
    """Gated, normalised linear attention with decay and linearised relative positions.

    o_i = sum_{j <= i} exp(-s_h (i - j)) sum_c q_ic k_jc cos((i - j) theta_hc) v_j, with q, k = f(x W_q), f(x W_k) and
    v = x W_v; y = (norm(o) * (x W_u)) W_o, where the norm is taken over all heads together.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        causal: True; there is no other form.
        layer_idx: number of this layer in its network, from 0; later layers decay less.
        num_layers: number of layers of the network.
        lrpe: whether to have the cosine, with learnable theta; None = in layer 0 alone, as in the paper.
        decay: slopes s_h: "tnl", ALiBi's with a factor for the layer; "constant", without that factor; "paper",
            8 h / H with a factor; "none", no decay.
        activation: f: "silu", "none" or "elu" (1 + elu).
        norm: "srmsnorm" (no parameters), "rmsnorm" or "layernorm".
        gate: whether x W_u is there.
        bias: bias in all projections.
        block_size: tokens in a block; None = the fastest.

    Raises:
        ValueError: sizes that do not divide, `causal=False`, or an unknown option.

    Cost: projections, and heads * (block * (w + d) + 2 * w * d) MACs per token; w = d, with LRPE 2 d.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = True,
        layer_idx: int = 0,
        num_layers: int = 1,
        lrpe: bool | None = None,
        decay: LayerDecay = "tnl",
        activation: Activation = "silu",
        norm: NormName = "srmsnorm",
        gate: bool = True,
        bias: bool = False,
        block_size: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be positive, got {block_size}")
        self.slopes = _slopes(num_heads, decay, layer_idx, num_layers)
        self.activation = activation
        self.block_size = block_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        with_lrpe = layer_idx == 0 if lrpe is None else lrpe
        self.theta = nn.Parameter(lrpe_frequencies(num_heads, self.head_dim)) if with_lrpe else None
        self.norm = norm_by_name(norm, dim)
        self.u_proj = nn.Linear(dim, dim, bias=bias) if gate else None
        self.o_proj = nn.Linear(dim, dim, bias=bias)

    def _project(self, x: Tensor, positions: Int[Tensor, "#batch tokens"]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        if self.activation == "silu":
            q, k = silu(q), silu(k)
        elif self.activation == "elu":
            q, k = elu_features(q).to(v.dtype), elu_features(k).to(v.dtype)
        if self.theta is not None:
            q, k = lrpe(q, k, self.theta, positions)
        return q, k, v

    def _positions(self, x: Tensor, segments: Tensor | None) -> Int[Tensor, "#batch tokens"]:
        places = torch.arange(x.shape[1], device=x.device)[None]
        return places if segments is None else places - run_starts(segments)

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """The operator, in blocks; padding is in the future, so a mask changes nothing."""
        q, k, v = self._project(x, self._positions(x, segments))
        return linear_attention(q, k, v, slopes=self.slopes, segments=segments, block_size=self.block_size)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads, normalise over all of them, gate and project."""
        merged = self.norm(merge_heads(mixed))
        return self.o_proj(merged if self.u_proj is None else merged * self.u_proj(x))

    def init_state(self, batch: int, *, max_len: int | None = None) -> LinearState:
        """A state of constant size, which counts positions too; `max_len` changes nothing."""
        return empty_state(
            batch,
            num_heads=self.num_heads,
            head_dim=self.head_dim * (1 if self.theta is None else 2),
            value_dim=self.head_dim,
            normalised=False,
            like=self.qkv.weight,
        )

    def mix_step(self, x: Tensor, state: LinearState, *, mask: Tensor | None) -> tuple[Tensor, LinearState]:
        """New tokens after those of the state; their positions go on from its count of real tokens."""
        q, k, v = self._project(x, state.position[:, None] + self._positions(x, None))
        return state.step(q, k, v, slopes=self.slopes, mask=mask, block_size=self.block_size)

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The decayed scores, signed."""
        q, k, _ = self._project(x, self._positions(x, segments))
        return linear_attention_weights(q, k, slopes=self.slopes, segments=segments)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, which have no activation."""
        return split_heads(self.qkv(x)[..., 2 * self.dim :], self.num_heads)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout of this layer.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_reference(state_dict, gate=self.u_proj is not None))

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, the gate's and the blocks'."""
        head_dim = options.dim // options.num_heads
        with_lrpe = options.layer_idx == 0 if options.lrpe is None else options.lrpe
        operator = linear_attention_macs(
            queries=tokens,
            keys=tokens,
            head_dim=head_dim * (2 if with_lrpe else 1),
            value_dim=head_dim,
            causal=True,
            normalised=False,
            block_size=options.block_size or BLOCK,
        )
        return batch * (tokens * (4 + bool(options.gate)) * options.dim**2 + options.num_heads * operator)


def rename_reference(state_dict: Mapping[str, Tensor], *, gate: bool) -> dict[str, Tensor]:
    """A layer's tensors under our names; the authors' `qkvu_proj` holds q, k, v and the gate's u one after the other.

    Args:
        state_dict: the authors' layout of one layer.
        gate: whether the layer has a gate.

    Raises:
        ValueError: `qkvu_proj` cannot be split.
    """
    parts = 4 if gate else 3
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        owner, _, kind = name.rpartition(".")
        if owner == "qkvu_proj":
            if tensor.ndim == 0 or tensor.shape[0] % parts:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, its rows must be {parts} equal parts")
            border = 3 * tensor.shape[0] // parts
            renamed[f"qkv.{kind}"] = tensor[:border]
            if gate:
                renamed[f"u_proj.{kind}"] = tensor[border:]
        elif owner == "norm":
            renamed[name] = tensor
        else:
            renamed[_REFERENCE_NAMES.get(name, f"reference {name}")] = tensor
    return renamed


def _slopes(num_heads: int, decay: LayerDecay, layer_idx: int, num_layers: int) -> tuple[float, ...] | None:
    if decay not in DECAYS:
        raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {decay!r}")
    of_layer = decay_slopes(
        num_heads, decay="tnl" if decay == "constant" else decay, layer_idx=layer_idx, num_layers=num_layers
    )
    return alibi_slopes(num_heads) if decay == "constant" else of_layer
