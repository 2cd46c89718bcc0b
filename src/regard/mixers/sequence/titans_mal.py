"""Titans with the memory as a layer: the long-term memory first, then attention in a sliding window over its output.

Paper: "Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663,
section 4.3, equations 29 to 31. The authors published no code, and the public implementation has no such variant.
x~ = [p ; x] with persistent tokens p; y = M(x~); o = window attention(y), in which what the memory made of p is always
visible. The paper's experiments stack the two like H3, which it does not spell out; here y is the whole memory layer's
output (normalised, gated, projected). The memory itself is that of `regard.mixers.sequence.titans`.
"""

from __future__ import annotations

from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from regard.contract import SequenceMixer
from regard.layers.head_norm import HeadNorm
from regard.layers.memory_and_window import MemoryAndWindowState
from regard.layers.neural_memory import MemoryState, NeuralMemory, memory_layer_macs
from regard.layers.prefix_attention import PrefixWindowAttention
from regard.metadata import Example
from regard.mixers.sequence.titans import MEMORY_TRAITS, PAPER, persistent_tokens
from regard.ops.heads import merge_heads
from regard.ops.prefix_window import prefix_window_attention_macs
from regard.registry import register


@register(
    name="titans_mal",
    system="titans",
    paper=PAPER,
    traits=MEMORY_TRAITS,
    example=Example(
        kwargs={"dim": 18, "num_heads": 3, "chunk_size": 5, "window_size": 7, "num_persistent": 2, "rope_base": 100.0},
        batch=2,
        tokens=13,
    ),
)
class TitansMAL(SequenceMixer):
    """Memory as a layer: a long-term memory under a sliding window.

    y = (norm(M([p ; x])) * silu([p ; x] W_g)) W_m; o = window attention(y) W_o.

    Args:
        dim: width of the model.
        num_heads: heads of attention, and memories; must divide `dim`.
        causal: True; there is no other form.
        window_size: tokens that a query sees, its own among them, beside the persistent ones.
        rope_base: base of attention's rotary embedding; None = no positions.
        memory_depth: L_M, matrices of the memory; 1 = a linear memory.
        expansion: hidden width of the memory, in widths of a head.
        residual_norm: M(k) = k + norm(...) (1 + gain) in place of the bare perceptron.
        momentum: past surprise counts (eta).
        forgetting: the memory decays (alpha).
        convolution: short convolutions on the memory's queries, keys and values.
        num_persistent: learned tokens before the sequence.
        max_surprise: largest norm of one token's gradient by one weight, beyond which it is shortened; None = any.
        chunk_size: tokens whose gradients are taken at the same weights.
        recompute: compute the memory's chunks anew in backward.

    Raises:
        ValueError: sizes that are not positive or do not divide, `causal=False`, or a rotary embedding with an odd
            head width.

    Cost: that of `TitansLMM`, and 2 * dim * (window + block) MACs per token.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        causal: bool = True,
        window_size: int = 64,
        rope_base: float | None = None,
        memory_depth: int = 2,
        expansion: int = 2,
        residual_norm: bool = False,
        momentum: bool = True,
        forgetting: bool = True,
        convolution: bool = True,
        num_persistent: int = 4,
        max_surprise: float | None = 10.0,
        chunk_size: int = 64,
        recompute: bool = False,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.memory = NeuralMemory(
            dim,
            num_heads=num_heads,
            memory_depth=memory_depth,
            expansion=expansion,
            residual_norm=residual_norm,
            momentum=momentum,
            forgetting=forgetting,
            convolution=convolution,
            max_surprise=max_surprise,
            chunk_size=chunk_size,
            recompute=recompute,
        )
        self.persistent = persistent_tokens(num_persistent, dim)
        self.memory_norm = HeadNorm(self.memory.head_dim)
        self.gate_proj = nn.Linear(dim, dim, bias=False)
        self.memory_proj = nn.Linear(dim, dim, bias=False)
        self.attention = PrefixWindowAttention(dim, num_heads=num_heads, window_size=window_size, rope_base=rope_base)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def _layer(self, reads: Tensor, x: Tensor) -> Tensor:
        """The memory layer's output from what was read."""
        return self.memory_proj(merge_heads(self.memory_norm(reads)) * silu(self.gate_proj(x)))

    def _begin(self) -> tuple[MemoryState, tuple[Tensor, Tensor]]:
        """The memory after the persistent tokens, and the keys and values of what it made of them."""
        reads, memory = self.memory.begin(self.persistent)
        if reads is None or self.persistent is None:
            return memory, self.attention.prefix(self.attention.k_proj.weight.new_zeros(1, 0, self.dim))
        # a copy, since counting FLOPs refuses a module whose input is a view of a parameter
        return memory, self.attention.prefix(self._layer(reads, self.persistent[None].clone()))

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Attention over the memory's output; padding is in the future, so a mask changes nothing."""
        start, prefix = self._begin()
        return self.attention(self._layer(self.memory(x, start), x), prefix)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def init_state(self, batch: int, *, max_len: int | None = None) -> MemoryAndWindowState:
        """The memory before the first token, and an empty window; `max_len` changes nothing."""
        start, prefix = self._begin()
        memory, attention = start.expand(batch), self.attention.init_state(batch, prefix)
        return MemoryAndWindowState(position=memory.position.clone(), memory=memory, attention=attention)

    def mix_step(
        self, x: Tensor, state: MemoryAndWindowState, *, mask: Tensor | None
    ) -> tuple[Tensor, MemoryAndWindowState]:
        """New tokens after those of the state."""
        reads, memory = self.memory.step(x, state.memory, mask=mask)
        mixed, attention = self.attention.step(self._layer(reads, x), state.attention, mask=mask)
        return mixed, MemoryAndWindowState(position=memory.position, memory=memory, attention=attention)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """The memory, its gate and projection, the window's four, and the windows."""
        dim, prefix = options.dim, options.num_persistent
        windows = options.num_heads * prefix_window_attention_macs(
            queries=tokens, head_dim=dim // options.num_heads, window_size=options.window_size, prefix=prefix
        )
        others = batch * (6 * tokens * dim**2 + windows) + 4 * prefix * dim**2
        return memory_layer_macs(options, batch=batch, tokens=tokens) + others
