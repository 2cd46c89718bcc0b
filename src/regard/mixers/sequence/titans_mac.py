"""Titans with the memory as a context: attention in segments that begin with what the memory holds for them.

Paper: "Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663,
section 4.1, equations 21 to 25. The authors published no code; the network of lucidrains/titans-pytorch@cc016ebc, which
departs from the paper, is `regard.models.language.titans_lucidrains`.
Different from the paper, whose equations let the future of a segment through twice: `regard.layers.context_memory` says
where, and how it is kept out. The paper leaves the product of attention and memory open: here both are normalised with
learned weights, the memory goes through a SiLU, and they are multiplied.
"""

from __future__ import annotations

from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor

from regard.contract import SequenceMixer
from regard.layers.context_memory import ContextMemory, ContextMemoryState, context_memory_macs
from regard.layers.memory_gate import MemoryGate, side_by_side
from regard.layers.neural_memory import NeuralMemory
from regard.metadata import Example
from regard.mixers.sequence.titans import MEMORY_TRAITS, PAPER
from regard.registry import register


@register(
    name="titans_mac",
    system="titans",
    paper=PAPER,
    traits=MEMORY_TRAITS,
    example=Example(
        kwargs={"dim": 18, "num_heads": 3, "segment_len": 5, "num_persistent": 2, "rope_base": 100.0},
        batch=2,
        tokens=13,
    ),
)
class TitansMAC(SequenceMixer):
    """Memory as a context: attention in segments over persistent tokens, long-term memory and the segment.

    h = M(q(S)), y = attention([p ; h ; S]), M learns y, o = (norm(y) * silu(norm(M(y)))) W_o.

    Args:
        dim: width of the model.
        num_heads: heads of attention, and memories; must divide `dim`.
        causal: True; there is no other form.
        segment_len: tokens of a segment; the memory takes its gradients at the weights at a segment's start.
        rope_base: base of attention's rotary embedding of places in a segment; None = no positions.
        memory_depth: L_M, matrices of the memory; 1 = a linear memory.
        expansion: hidden width of the memory, in widths of a head.
        residual_norm: M(k) = k + norm(...) (1 + gain) in place of the bare perceptron.
        momentum: past surprise counts (eta).
        forgetting: the memory decays (alpha).
        convolution: short convolutions on the memory's queries, keys and values.
        num_persistent: learned tokens before every segment.
        max_surprise: largest norm of one token's gradient by one weight, beyond which it is shortened; None = any.
        recompute: compute the memory's segments anew in backward.

    Raises:
        ValueError: sizes that are not positive or do not divide, `causal=False`, or a rotary embedding with an odd
            head width.

    Cost: projections (11 dim^2 per token), 2 * dim * (persistent + 2 * segment) for attention, and the memory.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        causal: bool = True,
        segment_len: int = 64,
        rope_base: float | None = None,
        memory_depth: int = 2,
        expansion: int = 2,
        residual_norm: bool = False,
        momentum: bool = True,
        forgetting: bool = True,
        convolution: bool = True,
        num_persistent: int = 4,
        max_surprise: float | None = 10.0,
        recompute: bool = False,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        if segment_len < 1:
            raise ValueError(f"segment_len must be positive, got {segment_len}")
        memory = NeuralMemory(
            dim,
            num_heads=num_heads,
            memory_depth=memory_depth,
            expansion=expansion,
            residual_norm=residual_norm,
            momentum=momentum,
            forgetting=forgetting,
            convolution=convolution,
            max_surprise=max_surprise,
            chunk_size=segment_len,
            recompute=recompute,
        )
        self.context_memory = ContextMemory(
            dim, num_heads=num_heads, memory=memory, num_persistent=num_persistent, rope_base=rope_base
        )
        self.gate = MemoryGate(dim, head_dim=memory.head_dim)

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens two_widths"]:
        """Attention and memory side by side; padding is in the future, so a mask changes nothing."""
        return side_by_side(*self.context_memory(x))

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Gate one by the other, merge the heads and project."""
        return self.gate(mixed)

    def init_state(self, batch: int, *, max_len: int | None = None) -> ContextMemoryState:
        """The memory before the first token, and an empty segment; `max_len` changes nothing."""
        return self.context_memory.init_state(batch)

    def mix_step(
        self, x: Tensor, state: ContextMemoryState, *, mask: Tensor | None
    ) -> tuple[Tensor, ContextMemoryState]:
        """New tokens after those of the state."""
        attended, recalled, after = self.context_memory.step(x, state, mask=mask)
        return side_by_side(attended, recalled), after

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Attention in segments, the memory, and the output."""
        return context_memory_macs(options, batch=batch, tokens=tokens) + batch * tokens * options.dim**2
