"""The sizes of landmark attention's language model, and those of the paper's.

Paper: "Landmark Attention", Mohtashami and Jaggi, NeurIPS 2023, https://arxiv.org/abs/2305.16300, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from regard.layers.offload import Offload
from regard.ops.heads import head_width
from regard.ops.landmark_retrieval import Selection


@dataclass(frozen=True, kw_only=True)
class LandmarkConfig:
    """The network's sizes, and how it reads.

    Args:
        vocab_size: number of token ids.
        landmark_id: the id of landmarks; None = one that is no token's, beyond the others.
        end_id: the id that ends a text, after which nothing is predicted; None = there is none.
        dim: width.
        num_layers: number of blocks.
        num_heads: heads of every mixer; must divide `dim`.
        hidden: width inside the perceptrons; 0 = four times `dim`.
        block_size: tokens between two landmarks; the weights do not depend on it, so that it may change after training.
        seq_len: most tokens of one pass.
        window: tokens that are read at once where the memory is.
        top_k: blocks that a query retrieves.
        selection: queries retrieve "per_token_and_head", or share a choice: "max_over_heads", "max_over_tokens".
        max_blocks: blocks that a layer's memory keeps; None = all.
        offload: where they lie: "none" beside the parameters, "cpu", or "disk".
        as_compared: position retrieved blocks as the compared code does where there are no more than `top_k`.
        bias: bias in projections and norms.
        rope_base: base of the rotary embedding; None = no positions.
        gate_drop: probability of dropping a whole earlier block in training.
        dropout: probability after the embedding, every mixer and every perceptron, and of attention weights.
        checkpointing: recompute the blocks' activations in backward.

    Raises:
        ValueError: a size that is not positive or does not divide, or an id outside the vocabulary.
    """

    vocab_size: int = 256
    landmark_id: int | None = None
    end_id: int | None = None
    dim: int = 128
    num_layers: int = 3
    num_heads: int = 4
    hidden: int = 0
    block_size: int = 15
    seq_len: int = 128
    window: int = 64
    top_k: int = 2
    selection: Selection = "per_token_and_head"
    max_blocks: int | None = None
    offload: Offload = "none"
    as_compared: bool = False
    bias: bool = False
    rope_base: float | None = 10000.0
    gate_drop: float = 0.0
    dropout: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "seq_len", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        head_width(self.dim, self.num_heads)
        if self.hidden < 0:
            raise ValueError(f"hidden must not be negative, got {self.hidden}")
        if self.window > self.seq_len:
            raise ValueError(f"window must be at most seq_len={self.seq_len} tokens, got {self.window}")
        for name in ("landmark_id", "end_id"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < self.vocab_size:
                raise ValueError(f"{name} must be an id below vocab_size={self.vocab_size}, got {number}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


PAPER_CONFIG = LandmarkConfig(
    vocab_size=50304,
    landmark_id=50260,
    end_id=50256,
    dim=1024,
    num_layers=12,
    num_heads=8,
    block_size=50,
    seq_len=512,
    window=250,
)
