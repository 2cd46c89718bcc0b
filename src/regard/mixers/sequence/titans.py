"""Titans' neural long-term memory alone: a small network per head that is trained on the sequence while it is read.

Paper: "Titans: Learning to Memorize at Test Time", Behrouz, Zhong and Mirrokni, 2025, https://arxiv.org/abs/2501.00663,
section 3 (memory), 4.4 (convolutions, normalised keys, gate) and the variant LMM of its experiments.
The authors published no code. The memory of lucidrains/titans-pytorch@cc016ebc, which departs from the paper, is
`regard.layers.chunk_memory`; this file follows the paper.
What the paper leaves open is decided thus: the pointwise half of the depthwise-separable convolutions is the projection
itself; rates are one per head; a token's gradient is shortened to a norm of `max_surprise`, since a deep memory whose
chunk adds up many gradients taken at the same weights can diverge (None takes the bound away); first steps are small
for the same reason; persistent tokens, which the paper puts before the sequence, are a
chunk of their own, so that what they leave behind is the same for every input and is computed once.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from regard.contract import SequenceMixer
from regard.layers.head_norm import HeadNorm
from regard.layers.neural_memory import MemoryState, NeuralMemory, memory_layer_macs
from regard.metadata import Example, No, Paper, Traits
from regard.ops.heads import merge_heads
from regard.registry import register

PAPER = Paper(
    title="Titans: Learning to Memorize at Test Time",
    authors="Behrouz et al.",
    venue="arXiv",
    year=2025,
    url="https://arxiv.org/abs/2501.00663",
    code="lucidrains/titans-pytorch@cc016ebc",
    where="sections 3 and 4",
)
MEMORY_TRAITS = Traits(
    bidirectional=No("the memory learns from the past while it is read"),
    cross=No("the memory learns from the past while it is read: a context has no order relative to x"),
    segments=No("chunks are counted from a sequence's first token, and packed sequences begin inside them"),
    bias=No("the memory's weights stand for all earlier tokens: there are no scores to add to"),
    has_map=No("what is read is not a weighted sum of values: the memory is a network that was trained on them"),
    row_stochastic=No("there is no map"),
    time="n",
    memory="n",
)


@register(
    name="titans_lmm",
    system="titans",
    paper=PAPER,
    traits=MEMORY_TRAITS,
    example=Example(
        kwargs={"dim": 15, "num_heads": 3, "chunk_size": 5, "num_persistent": 2},
        batch=2,
        tokens=13,
    ),
)
class TitansLMM(SequenceMixer):
    """Neural long-term memory: surprise, momentum and forgetting, per head.

    S_t = eta_t S_{t-1} - theta_t grad ||M(k_t) - v_t||^2, W_t = (1 - alpha_t) W_{t-1} + S_t, read as M_{W_t}(q_t);
    y = (norm(reads) * silu(x W_g)) W_o.

    Args:
        dim: width of the model.
        num_heads: number of heads, each with its memory; must divide `dim`.
        causal: True; there is no other form.
        memory_depth: L_M, matrices of the memory; 1 = a linear memory.
        expansion: hidden width of the memory, in widths of a head.
        residual_norm: M(k) = k + norm(...) (1 + gain) in place of the bare perceptron.
        momentum: past surprise counts (eta).
        forgetting: the memory decays (alpha).
        convolution: short convolutions on queries, keys and values.
        num_persistent: learned tokens that are memorised before the sequence.
        max_surprise: largest norm of one token's gradient by one weight, beyond which it is shortened; None = any.
        chunk_size: tokens whose gradients are taken at the same weights.
        recompute: compute chunks anew in backward, which keeps only the memory at their starts.

    Raises:
        ValueError: sizes that are not positive or do not divide, or `causal=False`.

    Cost: projections, and for a memory of P weights per head about heads * (7 P + chunk * 2 * (inputs + outputs of its
    matrices)) MACs per token.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        causal: bool = True,
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
        self.norm = HeadNorm(self.memory.head_dim)
        self.gate_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """What the memory holds for every token; padding is in the future, so a mask changes nothing."""
        _, state = self.memory.begin(self.persistent)
        return self.memory(x, state)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Normalise each head, merge, gate and project."""
        return self.o_proj(merge_heads(self.norm(mixed)) * silu(self.gate_proj(x)))

    def init_state(self, batch: int, *, max_len: int | None = None) -> MemoryState:
        """The memory before the first token; `max_len` changes nothing."""
        return self.memory.begin(self.persistent)[1].expand(batch)

    def mix_step(self, x: Tensor, state: MemoryState, *, mask: Tensor | None) -> tuple[Tensor, MemoryState]:
        """New tokens after those of the state."""
        return self.memory.step(x, state, mask=mask)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """The memory with its projections, gate and output."""
        return memory_layer_macs(options, batch=batch, tokens=tokens) + 2 * batch * tokens * options.dim**2


def persistent_tokens(number: int, dim: int) -> nn.Parameter | None:
    """Learned tokens that stand before every sequence.

    Raises:
        ValueError: a negative number.
    """
    if number < 0:
        raise ValueError(f"num_persistent must not be negative, got {number}")
    return nn.Parameter(torch.randn(number, dim)) if number else None
