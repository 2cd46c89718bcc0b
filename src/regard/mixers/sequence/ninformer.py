"""The gating unit of NiNformer: a linear map of each token, gated by what an MLP-Mixer block makes of all tokens.

Paper: "NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function", Abdullah and Aydin,
2024, https://arxiv.org/abs/2403.02411.
Compared with Abdullah-88/NiNformer@0ec85d46, `ninformer.py:MixerGatingUnit`.
The mixer block keeps its own residuals, so the gate holds the token itself: y = u * (x + ...). No activation follows.
Different from the code: tokens are mixed on their own axis, without transposing x.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import SequenceMixer, load_strictly
from regard.layers.mixer_block import MixerBlock, mixer_block_macs
from regard.metadata import Example, No, Paper, Traits
from regard.registry import register

NINFORMER_PAPER = Paper(
    title="NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function",
    authors="Abdullah and Aydin",
    venue="arXiv",
    year=2024,
    url="https://arxiv.org/abs/2403.02411",
    code="Abdullah-88/NiNformer@0ec85d46",
)
_FIXED = "token-mixing weights belong to fixed positions"
_GATE = No("tokens pass through a perceptron: the output is no weighted sum of values")
_NAMES = {
    "proj": "u_proj",
    "Mixer.token_mix.0": "block.token_norm",
    "Mixer.token_mix.2.net.0": "block.token_mlp.up_proj",
    "Mixer.token_mix.2.net.3": "block.token_mlp.down_proj",
    "Mixer.channel_mix.0": "block.channel_norm",
    "Mixer.channel_mix.1.net.0": "block.channel_mlp.up_proj",
    "Mixer.channel_mix.1.net.3": "block.channel_mlp.down_proj",
}


@register(
    name="ninformer",
    system="ninformer",
    paper=NINFORMER_PAPER,
    traits=Traits(
        causal=No("every position's weights reach the positions after it"),
        cross=No(f"{_FIXED} of x, and a context has others"),
        masks=No(f"{_FIXED}: a row without some of its tokens is not a shorter row"),
        segments=No(f"{_FIXED}: a segment would need weights of its own"),
        bias=No("has no scores: tokens are mixed by a perceptron"),
        decodes=No("bidirectional only: there is no past to decode from"),
        step_exact=No("bidirectional only: there is no past to decode from"),
        any_length=No(f"{_FIXED}, seq_len of them"),
        has_map=_GATE,
        row_stochastic=_GATE,
        time="n",
        memory="n",
    ),
    example=Example(kwargs={"dim": 15, "seq_len": 13, "token_hidden": 11, "channel_hidden": 17}, batch=2, tokens=13),
)
class MixerGatingUnit(SequenceMixer):
    """A dynamic element-wise gate, made by mixing tokens: y = u * v, without attention.

    u = W x + b and v = MixerBlock(x), multiplied element by element. For fixed weights, time grows as the number of
    tokens times `token_hidden`.

    Args:
        dim: width of the model.
        seq_len: number of tokens, which is fixed.
        causal: False; there is no other form.
        token_hidden: width inside the perceptron along the tokens.
        channel_hidden: width inside the perceptron along the channels.
        dropout: probability of dropping a number inside the perceptrons in training.

    Raises:
        ValueError: a size that is not positive, or `causal=True`.

    Cost: tokens * dim * (dim + 2 * token_hidden + 2 * channel_hidden) MACs.
    """

    def __init__(
        self,
        dim: int,
        *,
        seq_len: int,
        causal: bool = False,
        token_hidden: int = 512,
        channel_hidden: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads=1, causal=causal)
        if seq_len < 1:
            raise ValueError(f"seq_len must be positive, got {seq_len}")
        self.seq_len = seq_len
        self.u_proj = nn.Linear(dim, dim)
        self.block = MixerBlock(seq_len, dim, token_hidden=token_hidden, channel_hidden=channel_hidden, dropout=dropout)

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch 1 tokens dim"]:
        """The gate v: all tokens through the mixer block."""
        return self.block(x)[:, None]

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """The gated map of each token."""
        return self.u_proj(x) * mixed[:, 0]

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout: `proj`, `Mixer.token_mix`, `Mixer.channel_mix`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor has the wrong shape.
        """
        load_strictly(self, {own_name(name): tensor for name, tensor in state_dict.items()})

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """The map and the block.

        Raises:
            ValueError: another number of tokens than `seq_len`.
        """
        if tokens != options.seq_len:
            raise ValueError(f"tokens={tokens} and seq_len={options.seq_len}: they must be equal")
        block = mixer_block_macs(
            seq_len=tokens,
            dim=options.dim,
            token_hidden=options.token_hidden,
            channel_hidden=options.channel_hidden,
        )
        return batch * (tokens * options.dim**2 + block)


def own_name(name: str) -> str:
    """`Mixer.token_mix.0.weight`, as the authors name it, as `block.token_norm.weight`; other names as they are."""
    layer, _, kind = name.rpartition(".")
    return f"{_NAMES[layer]}.{kind}" if layer in _NAMES and kind in ("weight", "bias") else name
