"""TransNormerLLM, and TNL: decoder-only language models on gated, normalised linear attention with decay.

Papers: "TransNormerLLM: A Faster and Better Large Language Model with Improved TransNormer", Qin et al., 2023,
https://arxiv.org/abs/2307.14995, section 3; "Various Lengths, Constant Speed: Efficient Language Modeling with
Lightning Attention", Qin et al., ICML 2024, https://arxiv.org/abs/2405.17381 (TNL, the same network).
Compared with weigao266/TNL-MoE@007576fe, `smoe/models/tnl/modeling_transnormer.py` (`TransnormerForCausalLM`), on which
parameters are counted: its head is not tied, and only layer 0 has LRPE. The papers' names count less: 385M is the
body with one embedding of 50,272 rows, 1B and 7B are bodies with one of 64,000.
Different from the code: row 0 of the embedding is trained like any other; the paper's ablations are options.
`tnl_wikitext` is a reconstruction, since the paper gives no sizes for WikiText-103: six layers, 512 wide, 1,280 inside
the gated units, and a tied embedding of GPT-2's 50,265 subwords: 45.40 million, against the paper's 45.45.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.gated_feed_forward import SGLU, GateActivation
from regard.layers.norms import NormName, norm_by_name
from regard.metadata import Reported, Variant
from regard.mixers.sequence.transnormer import (
    TRANSNORMER_PAPER,
    Activation,
    LayerDecay,
    NormLinearAttention,
    rename_reference,
)
from regard.models.language.stack import LanguageBlock, StackedLanguageModel
from regard.ops.absolute_positions import sinusoids, token_positions
from regard.ops.heads import head_width
from regard.registry import register

Positions = Literal["mix", "decay", "lrpe", "lrpe_decay", "sinusoidal"]
POSITIONS: tuple[Positions, ...] = ("mix", "decay", "lrpe", "lrpe_decay", "sinusoidal")

_MODEL_NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "lm_head.weight": "head.weight",
    "model.final_norm.weight": "norm.weight",
    "model.final_norm.bias": "norm.bias",
}
_LAYER_NAMES = {
    "token_norm": "mixer_norm",
    "channel_norm": "mlp_norm",
    "channel_mixer.l1": "mlp.gate_proj",
    "channel_mixer.l2": "mlp.up_proj",
    "channel_mixer.l3": "mlp.down_proj",
}


@dataclass(frozen=True, kw_only=True)
class TransNormerConfig:
    """The network's sizes, and what the paper varies.

    Args:
        vocab_size: number of token ids.
        dim: width.
        num_layers: number of layers.
        num_heads: heads of every mixer; must divide `dim`.
        hidden: width inside the gated units; 0 = 11 / 4 of `dim`, as in the smallest published network.
        positions: "mix", LRPE in the first layer and decay in all; "decay" and "lrpe", one of them in all layers;
            "lrpe_decay", both in all layers; "sinusoidal", neither, but sinusoids added to the embedding.
        decay: slopes where there is decay: "tnl", "constant" (the same in every layer) or "paper".
        activation: of queries and keys: "silu", "none" or "elu" (1 + elu).
        glu_activation: inside the gated units: "none" or "silu".
        gate: gate after the attention.
        norm: "srmsnorm", "rmsnorm" or "layernorm", everywhere.
        bias: bias in all projections except the head.
        scale_embedding: multiply embeddings by sqrt(dim).
        tied: the head shares the embedding's weights.
        init_std: standard deviation of all weights at first.
        dropout: probability after the embedding, every mixer and every gated unit.
        checkpointing: recompute the layers' activations in backward.

    Raises:
        ValueError: a size that is not positive or does not divide, or an unknown option.
    """

    vocab_size: int = 256
    dim: int = 128
    num_layers: int = 3
    num_heads: int = 4
    hidden: int = 0
    positions: Positions = "mix"
    decay: LayerDecay = "tnl"
    activation: Activation = "silu"
    glu_activation: GateActivation = "none"
    gate: bool = True
    norm: NormName = "srmsnorm"
    bias: bool = False
    scale_embedding: bool = True
    tied: bool = False
    init_std: float = 0.02
    dropout: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        head_width(self.dim, self.num_heads)
        if self.hidden < 0:
            raise ValueError(f"hidden must not be negative, got {self.hidden}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}")
        if self.decay == "none":
            raise ValueError("decay='none' is no option of the network: positions='lrpe' or 'sinusoidal' have no decay")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.init_std < 0:
            raise ValueError(f"init_std must not be negative, got {self.init_std}")

    def has_lrpe(self, layer: int) -> bool:
        """Whether a layer encodes relative positions."""
        return self.positions in ("lrpe", "lrpe_decay") or (self.positions == "mix" and layer == 0)

    def decay_of_layers(self) -> LayerDecay:
        """The kind of slopes that `positions` leaves."""
        return "none" if self.positions in ("lrpe", "sinusoidal") else self.decay


def _block(config: TransNormerConfig, layer: int) -> LanguageBlock:
    mixer = NormLinearAttention(
        config.dim,
        num_heads=config.num_heads,
        layer_idx=layer,
        num_layers=config.num_layers,
        lrpe=config.has_lrpe(layer),
        decay=config.decay_of_layers(),
        activation=config.activation,
        norm=config.norm,
        gate=config.gate,
        bias=config.bias,
    )
    hidden = config.hidden or max(1, 11 * config.dim // 4)
    return LanguageBlock(
        mixer_norm=norm_by_name(config.norm, config.dim),
        mixer=mixer,
        mlp_norm=norm_by_name(config.norm, config.dim),
        mlp=SGLU(config.dim, hidden, activation=config.glu_activation, bias=config.bias),
        dropout=config.dropout,
    )


def _published(params: int, *, dim: int, num_layers: int, num_heads: int, hidden: int) -> Variant:
    where = "counted on the authors' code, with both embeddings"
    return Variant(
        config=TransNormerConfig(vocab_size=64000, dim=dim, num_layers=num_layers, num_heads=num_heads, hidden=hidden),
        reported=Reported(params=params, where=where, params_tolerance=0.0),
    )


_385M = _published(464_520_192, dim=1024, num_layers=24, num_heads=8, hidden=2816)
_1B = _published(1_151_338_496, dim=2048, num_layers=16, num_heads=16, hidden=5632)
_7B = _published(7_098_863_616, dim=4096, num_layers=30, num_heads=32, hidden=11008)
_WIKITEXT = Variant(
    config=TransNormerConfig(vocab_size=50265, dim=512, num_layers=6, num_heads=8, hidden=1280, tied=True),
    reported=Reported(params=45.45e6, where="Various Lengths, Constant Speed: WikiText-103", params_tolerance=0.002),
)


@register(name="transnormer_lm", system="transnormer", paper=TRANSNORMER_PAPER)
class TransNormerLM(StackedLanguageModel):
    """TransNormerLLM: a language model on linear attention, with a state of constant size.

    x <- x + attention(norm(x)), x <- x + SGLU(norm(x)) in every layer, a final norm, a head without bias.

    Args:
        config: its sizes.

    Raises:
        ValueError: an option that the mixer refuses.
    """

    SMALL: ClassVar[TransNormerConfig] = TransNormerConfig(dim=128, num_layers=3, num_heads=4)
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "transnormer_385m": _385M,
        "transnormer_1b": _1B,
        "transnormer_7b": _7B,
        "tnl_385m": _385M,
        "tnl_1b": _1B,
        "tnl_7b": _7B,
        "tnl_wikitext": _WIKITEXT,
    }

    def __init__(self, config: TransNormerConfig) -> None:
        blocks = [_block(config, layer) for layer in range(config.num_layers)]
        super().__init__(config, blocks, norm_by_name(config.norm, config.dim))
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def embed(
        self,
        tokens: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        start: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Embeddings times sqrt(dim), with sinusoidal positions where the config has them."""
        x = self.embedding(tokens)
        if self.config.scale_embedding:
            x = x * math.sqrt(self.config.dim)
        if self.config.positions == "sinusoidal":
            positions = token_positions(tokens, mask=mask, segments=segments, start=start)
            x = x + sinusoids(positions, self.config.dim).to(x.dtype)
        return x

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout, that of their files for `transformers`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape, or a tied head, which their files do not have.
        """
        if self.config.tied:
            raise ValueError("the authors' layout has a head of its own: build the network with tied=False")
        load_strictly(self, _own_layout(state_dict, gate=self.config.gate))


def _own_layout(state_dict: Mapping[str, Tensor], *, gate: bool) -> dict[str, Tensor]:
    """`model.layers.1.channel_mixer.l1.weight` as `blocks.1.mlp.gate_proj.weight`, and so on."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(\w+)", name)
        if found is None:
            renamed[_MODEL_NAMES.get(name, f"reference {name}")] = tensor
            continue
        layer, owner, kind = found.groups()
        if owner in _LAYER_NAMES:
            renamed[f"blocks.{layer}.{_LAYER_NAMES[owner]}.{kind}"] = tensor
        elif owner.startswith("token_mixer."):
            own = rename_reference({f"{owner.removeprefix('token_mixer.')}.{kind}": tensor}, gate=gate)
            renamed |= {f"blocks.{layer}.mixer.{part}": piece for part, piece in own.items()}
        else:
            renamed[f"reference {name}"] = tensor
    return renamed
