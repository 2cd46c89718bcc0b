"""The network of the best-kept public implementation of Titans: chunk memories before attention in segments.

Code: lucidrains/titans-pytorch@cc016ebc, `titans_pytorch/mac_transformer.py` (`MemoryAsContextTransformer`). Paper:
"Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663;
`TitansLM` with the variant "mac" follows the paper.

After every `segment_len` tokens stand `num_longterm` learned tokens. Each layer adds what its memory reads (in some
layers), then attention within a segment and its long-term tokens, with persistent keys that every query sees, then a
gated perceptron. From the second layer on attention mixes its values with those of the first.
Left out: options that no stored case holds (hyper-connections, gating attention by the memory, sliding segments,
selected inputs of the memories, weights shared between memories).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from regard.contract import load_strictly
from regard.layers.chunk_memory import ChunkMemory
from regard.ops.heads import merge_heads, split_heads
from regard.ops.precision import compute_dtype
from regard.ops.softmax_attention import softmax_attention

ROPE_BASE = 10000.0
FEED_FORWARD_RATIO = 4 * 2 / 3


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The network's sizes; the defaults are those of the implementation's own demonstration.

    Args:
        vocab_size: number of token ids.
        dim: width.
        num_layers: number of layers.
        num_heads: heads of attention.
        head_dim: their width.
        segment_len: tokens in a segment.
        num_persistent: keys and values that every query sees.
        num_longterm: learned tokens after every segment.
        memory_layers: layers with a memory, counted from 1.
        memory_depth: matrices of a memory.
        memory_expansion: hidden width of a memory, in widths of the network.
    """

    vocab_size: int = 256
    dim: int = 384
    num_layers: int = 8
    num_heads: int = 8
    head_dim: int = 64
    segment_len: int = 32
    num_persistent: int = 4
    num_longterm: int = 4
    memory_layers: tuple[int, ...] = (2, 4, 6)
    memory_depth: int = 2
    memory_expansion: int = 4

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_layers", "num_heads", "head_dim", "segment_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if min(self.num_persistent, self.num_longterm) < 0:
            raise ValueError(
                "num_persistent and num_longterm must not be negative, got "
                f"{self.num_persistent} and {self.num_longterm}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, got {self.head_dim}")
        wrong = [layer for layer in self.memory_layers if not 1 <= layer <= self.num_layers]
        if wrong:
            raise ValueError(f"memory_layers must be in 1..{self.num_layers}, got {wrong[0]}")


class AxialPosition(nn.Module):
    """A vector per place: a perceptron of the segment's number plus one of the place inside the segment."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 2 * dim
        self.segment, self.inside = (
            nn.Sequential(nn.Linear(1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, dim))
            for _ in range(2)
        )

    def forward(self, places: Int[Tensor, " places"], *, length: int) -> Float[Tensor, "places dim"]:
        """Vectors of places in segments of `length`."""
        dtype = next(self.parameters()).dtype
        segment, inside = (places // length).to(dtype), (places % length).to(dtype)
        return self.segment(segment[:, None]) + self.inside(inside[:, None])


class SegmentAttention(nn.Module):
    """Causal attention within segments, with persistent keys."""

    def __init__(self, config: TransformerConfig, *, first: bool) -> None:
        super().__init__()
        self.num_heads, inner = config.num_heads, config.num_heads * config.head_dim
        self.length = config.segment_len + config.num_longterm
        self.norm = nn.RMSNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * inner, bias=False)
        self.persistent = nn.Parameter(torch.zeros(2, config.num_heads, config.num_persistent, config.head_dim))
        self.value_mix = None if first else nn.Linear(config.dim, config.num_heads)
        self.o_proj = nn.Linear(inner, config.dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], first_values: Tensor | None
    ) -> tuple[Tensor, Float[Tensor, "batch heads tokens head_dim"]]:
        """The result, and the values before they are mixed with the first layer's."""
        x = self.norm(x)
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        own = v
        if self.value_mix is not None and first_values is not None:
            v = torch.lerp(v, first_values, torch.sigmoid(self.value_mix(x)).transpose(1, 2)[..., None])
        # from the start of the sequence: persistent keys are not turned, so the distance to them counts
        places = torch.arange(x.shape[1], device=x.device)
        q, k = rotate_neighbours(q, places), rotate_neighbours(k, places)
        return self.o_proj(merge_heads(self._within_segments(q, k, v))), own

    def _within_segments(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, _, tokens, _ = q.shape
        q, k, v = (
            pad(part, (0, 0, 0, -tokens % self.length)).unflatten(2, (-1, self.length)).transpose(1, 2).flatten(0, 1)
            for part in (q, k, v)
        )
        always = self.persistent.to(q.dtype)[:, None].expand(-1, q.shape[0], -1, -1, -1)
        k, v = torch.cat((always[0], k), dim=2), torch.cat((always[1], v), dim=2)
        visible = torch.ones(self.length, k.shape[2], dtype=torch.bool, device=q.device).tril(always.shape[3])
        mixed = softmax_attention(q, k, v, visible=visible[None, None])
        return mixed.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]


class GatedFeedForward(nn.Module):
    """RMSNorm, then a perceptron whose hidden layer is gated by a SiLU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(dim * FEED_FORWARD_RATIO)
        self.norm = nn.RMSNorm(dim)
        self.up, self.down = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The perceptron's output."""
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(value * silu(gate))


class Layer(nn.Module):
    """A memory, attention and a perceptron, each added to what comes in."""

    def __init__(self, config: TransformerConfig, number: int) -> None:
        super().__init__()
        self.memory = (
            ChunkMemory(
                config.dim,
                chunk_size=config.segment_len + config.num_longterm,
                depth=config.memory_depth,
                expansion=config.memory_expansion,
            )
            if number in config.memory_layers
            else None
        )
        self.attention = SegmentAttention(config, first=number == 1)
        self.feed_forward = GatedFeedForward(config.dim)

    def forward(self, x: Tensor, first_values: Tensor | None) -> tuple[Tensor, Tensor]:
        """The layer's output, and the values of the network's first attention."""
        if self.memory is not None:
            x = x + self.memory(x)[0]
        attended, values = self.attention(x, first_values)
        x = x + attended
        return x + self.feed_forward(x), values if first_values is None else first_values


class MemoryAsContextTransformer(nn.Module):
    """Scores of the token after every token.

    Args:
        config: its sizes.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.position = AxialPosition(config.dim)
        self.longterm = nn.Parameter(torch.randn(config.num_longterm, config.dim) * 0.02)
        self.layers = nn.ModuleList(Layer(config, number + 1) for number in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocab"]:
        """Scores for all tokens.

        Raises:
            ValueError: no `(batch, tokens)` with at least one token.
        """
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must have shape (batch, tokens) with at least 1 token, got {tuple(tokens.shape)}")
        places = self._places(tokens.shape[1], tokens.device)
        x = self._with_longterm(self.embedding(tokens))
        length = self.config.segment_len + self.config.num_longterm
        x = x + self.position(torch.arange(x.shape[1], device=x.device), length=length)
        values = None
        for layer in self.layers:
            x, values = layer(x, values)
        return self.head(self.norm(x[:, places]))

    def _places(self, tokens: int, device: torch.device) -> Int[Tensor, " tokens"]:
        """Where the tokens stand among the long-term ones."""
        number = torch.arange(tokens, device=device)
        return number + number // self.config.segment_len * self.config.num_longterm

    def _with_longterm(self, x: Tensor) -> Tensor:
        """The learned tokens after every whole segment that another one follows."""
        batch, tokens, _ = x.shape
        segment = self.config.segment_len
        whole = pad(x, (0, 0, 0, -tokens % segment)).unflatten(1, (-1, segment))
        learned = self.longterm.to(x.dtype).expand(batch, whole.shape[1], -1, -1)
        follows = (tokens - 1) // segment * self.config.num_longterm
        return torch.cat((whole, learned), dim=2).flatten(1, 2)[:, : tokens + follows]

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load lucidrains' layout, strictly; rotary frequencies, and what repeats a memory's weights, are left out.

        Raises:
            KeyError: an unknown or a missing key, named.
        """
        repeated = re.compile(r"\.rotary_emb\.freqs$|\.4\.memory_model\.")
        kept = {key: value for key, value in state_dict.items() if not repeated.search(key)}
        own = self.state_dict()
        renamed = {self.own_name(key): value for key, value in kept.items()}
        load_strictly(
            self, {key: value.view_as(own[key]) if key.endswith(".gain") else value for key, value in renamed.items()}
        )

    def own_name(self, key: str) -> str:
        """Our name of one of lucidrains' parameters."""
        found = re.match(r"layers\.(\d+)\.4\.(.*)", key)
        if found:
            number = int(found[1])
            memory = self.layers[number].memory if number < len(self.layers) else None
            return f"layers.{found[1]}.memory.{memory.own_name(found[2])}" if isinstance(memory, ChunkMemory) else key
        for theirs, ours in REFERENCE_NAMES:
            key = re.sub(theirs, ours, key)
        return key


REFERENCE_NAMES = (
    (r"^token_emb\.", "embedding."),
    (r"^to_logits\.", "head."),
    (r"^longterm_mems$", "longterm"),
    (r"^axial_pos_emb\.mlps\.0\.", "position.segment."),
    (r"^axial_pos_emb\.mlps\.1\.", "position.inside."),
    (r"^(layers\.\d+)\.5\.norm\.", r"\1.attention.norm."),
    (r"^(layers\.\d+)\.5\.persistent_memory$", r"\1.attention.persistent"),
    (r"^(layers\.\d+)\.5\.to_qkv\.", r"\1.attention.qkv."),
    (r"^(layers\.\d+)\.5\.to_out\.", r"\1.attention.o_proj."),
    (r"^(layers\.\d+)\.5\.to_learned_v_mix\.0\.", r"\1.attention.value_mix."),
    (r"^(layers\.\d+)\.6\.0\.", r"\1.feed_forward.norm."),
    (r"^(layers\.\d+)\.6\.1\.", r"\1.feed_forward.up."),
    (r"^(layers\.\d+)\.6\.3\.", r"\1.feed_forward.down."),
)
"""How lucidrains names what has another name here."""


def rotate_neighbours(
    x: Float[Tensor, "batch heads tokens head_dim"], places: Int[Tensor, " tokens"]
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Rotary embedding whose pairs are neighbouring channels."""
    dtype = compute_dtype(x)
    rates = ROPE_BASE ** (-torch.arange(0, x.shape[-1], 2, device=x.device, dtype=dtype) / x.shape[-1])
    angles = places[:, None].to(dtype) * rates
    even, odd = x.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = angles.cos(), angles.sin()
    turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1)
    return turned.flatten(-2).to(x.dtype)
