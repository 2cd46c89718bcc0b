"""Landmark attention: the last token of every block lets queries into the block, and is all that a search looks at.

Paper: "Landmark Attention: Random-Access Infinite Context Length for Transformers", Mohtashami and Jaggi, NeurIPS 2023,
https://arxiv.org/abs/2305.16300, sections 3.1 to 3.3.
Compared with epfml/landmark-attention@d963e504, `lm_benchmark/models/landmark.py` (`CausalSelfAttention`) with
`lm_benchmark/models/caches/mem_cache.py` (`MemLMCacheStorage`).
Different from the code: one ordinary softmax with a bias in the place of scattered groups, without a limit on their
number; fewer key/value heads than query heads are an option; rows of a batch may differ in length; the memory grows
where it is given no limit; where few blocks are stored their positions are exact, and ties go to the newest block
(`ops/landmark_retrieval.py`).

In a sequence of the mixer every (block_size + 1)-th token is a landmark: its value is never read. A language model
inserts tokens for them (`models/language/landmark.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.contract import SequenceMixer, load_strictly
from regard.layers.landmark_memory import LandmarkMemory, empty_landmark_memory
from regard.layers.offload import Offload, check_offload
from regard.metadata import Example, No, Paper, Traits
from regard.ops.heads import head_width, kv_head_count, merge_heads, repeat_heads, split_heads
from regard.ops.landmark_attention import (
    landmark_attention,
    landmark_attention_macs,
    landmark_attention_of_layout,
    landmark_weights,
    landmark_weights_of_layout,
)
from regard.ops.landmark_retrieval import Retrieval, Selection
from regard.ops.landmark_sections import check_landmarks, is_landmark, landmarks_of_segments
from regard.ops.rotary import check_rotary, rotate
from regard.registry import register

LANDMARK_PAPER = Paper(
    title="Landmark Attention: Random-Access Infinite Context Length for Transformers",
    authors="Mohtashami and Jaggi",
    venue="NeurIPS",
    year=2023,
    url="https://arxiv.org/abs/2305.16300",
    code="epfml/landmark-attention@d963e504",
    where="sections 3.1 to 3.3",
)


@register(
    name="landmark",
    system="landmark",
    paper=LANDMARK_PAPER,
    traits=Traits(
        bidirectional=No("a landmark stands for the block before it, and a query's own block is the last that it sees"),
        cross=No("a context has no block of the query's own"),
        step_exact=No("a step retrieves a few blocks, and the full pass attends to all of them"),
        time="n^2",
        memory="n^2",
    ),
    example=Example(
        kwargs={
            "dim": 36,
            "num_heads": 6,
            "num_kv_heads": 3,
            "block_size": 4,
            "top_k": 2,
            "rope_base": 100.0,
        },
        batch=2,
        tokens=29,
    ),
)
class LandmarkAttention(SequenceMixer):
    """Causal attention with one landmark per block; decoding retrieves `top_k` blocks from a memory without end.

    The weight of token j is softmax_j over the query's own block and the landmarks of earlier blocks; for j in an
    earlier block it is softmax_j over that block, times its landmark's weight. Landmarks weigh 0.

    Args:
        dim: width of the model.
        num_heads: number of query heads; must divide `dim`.
        num_kv_heads: number of key/value heads; must divide `num_heads`; None = `num_heads`.
        causal: hide the future; there is no other form.
        block_size: ordinary tokens in a block; place p is a landmark where p mod (block_size + 1) = block_size.
        top_k: blocks that a query of `step` retrieves; 0 = none.
        selection: queries retrieve "per_token_and_head", or share a choice: "max_over_heads", "max_over_tokens".
        max_blocks: blocks that the memory keeps; None = all.
        offload: where they lie: "none" beside the parameters, "cpu", or "disk" (a file mapped into the CPU's memory).
        as_compared: position retrieved blocks as the compared code does where there are no more than `top_k`.
        memory_in_training: let `step` be called in training mode with gradients, which never reach the memory.
        qkv_bias: bias in the three input projections.
        out_bias: bias in the output projection.
        rope_base: base of the rotary embedding; None = no positions.
        gate_drop: probability of dropping a whole earlier block in training.
        attn_drop: probability of dropping a weight in training.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not fit, an unknown option, or `causal=False`.

    Cost: as softmax attention for the full pass; a token of `step` scores n / (block_size + 1) landmarks and attends to
    top_k * (block_size + 1) keys and those of its call.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        causal: bool = True,
        block_size: int = 50,
        top_k: int = 2,
        selection: Selection = "per_token_and_head",
        max_blocks: int | None = None,
        offload: Offload = "none",
        as_compared: bool = False,
        memory_in_training: bool = False,
        qkv_bias: bool = False,
        out_bias: bool = False,
        rope_base: float | None = None,
        gate_drop: float = 0.0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        check_rotary(self.head_dim, rope_base)
        self.retrieval = Retrieval(
            block_size=block_size, top_k=top_k, selection=selection, rope_base=rope_base, as_compared=as_compared
        )
        if max_blocks is not None and max_blocks < max(1, top_k):
            raise ValueError(f"max_blocks must be at least 1 and at least top_k={top_k}, got {max_blocks}")
        check_offload(offload)
        for name, probability in (("gate_drop", gate_drop), ("attn_drop", attn_drop), ("proj_drop", proj_drop)):
            if not 0 <= probability < 1:
                raise ValueError(f"{name} must be in [0, 1), got {probability}")
        self.max_blocks, self.offload, self.memory_in_training = max_blocks, offload, memory_in_training
        self.block_size, self.rope_base = block_size, rope_base
        self.gate_drop, self.attn_drop = gate_drop, attn_drop
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim, bias=out_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def inert_parameters(self) -> set[str]:
        """Without rotary embedding a key bias adds the same number to all scores of a query."""
        return {"k_proj.bias"} if self.k_proj.bias is not None and self.rope_base is None else set()

    def _project(
        self, x: Tensor
    ) -> tuple[
        Float[Tensor, "batch heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
        Float[Tensor, "batch kv_heads tokens head_dim"],
    ]:
        q = split_heads(self.q_proj(x), self.num_heads)
        k = split_heads(self.k_proj(x), self.num_kv_heads)
        return q, k, split_heads(self.v_proj(x), self.num_kv_heads)

    def _placed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._project(x)
        if self.rope_base is None:
            return q, k, v
        places = torch.arange(x.shape[1], device=x.device)[None]
        return rotate(q, places, base=self.rope_base), rotate(k, places, base=self.rope_base), v

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """All blocks, by one softmax; padding lies to the right, where causality hides it."""
        if segments is not None:
            return self._mix_layout(x, landmarks_of_segments(segments, self.block_size), segments, bias)
        return landmark_attention(
            *self._placed(x),
            block_size=self.block_size,
            bias=bias,
            attn_dropout=self.attn_drop if self.training else 0.0,
            gate_dropout=self.gate_drop if self.training else 0.0,
        )

    def _mix_layout(self, x: Tensor, landmarks: Tensor, segments: Tensor | None, bias: Tensor | None) -> Tensor:
        return landmark_attention_of_layout(
            *self._placed(x),
            landmarks=landmarks,
            segments=segments,
            bias=bias,
            attn_dropout=self.attn_drop if self.training else 0.0,
            gate_dropout=self.gate_drop if self.training else 0.0,
        )

    def attend_layout(
        self, x: Float[Tensor, "batch tokens dim"], landmarks: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """The full pass where the caller says which tokens are landmarks.

        Args:
            x: the tokens.
            landmarks: True = landmark; each needs an ordinary token between it and the one before.

        Raises:
            ValueError: shapes that do not fit, or a landmark without a block.
        """
        self._check_arguments(x, None, None, None, None)
        if landmarks.shape != x.shape[:2] or landmarks.dtype != torch.bool:
            raise ValueError(
                f"landmarks must be bool of shape (batch, tokens) = {tuple(x.shape[:2])}, "
                f"got {landmarks.dtype} of {tuple(landmarks.shape)}"
            )
        check_landmarks(landmarks)
        if not torch.compiler.is_compiling():
            expected = is_landmark(torch.arange(x.shape[1], device=x.device), self.block_size)
            if torch.equal(landmarks, expected.expand_as(landmarks)):
                return self.out(self.mix(x, context=None, mask=None, segments=None, bias=None), x)
        return self.out(self._mix_layout(x, landmarks, None, None), x)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.proj_drop(self.o_proj(merge_heads(mixed)))

    def init_state(self, batch: int, *, max_len: int | None = None) -> LandmarkMemory:
        """An empty memory with room for `max_len` tokens; it grows beyond, up to `max_blocks`."""
        return empty_landmark_memory(
            batch,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            block_size=self.block_size,
            max_blocks=self.max_blocks,
            max_len=max_len,
            offload=self.offload,
            like=self.k_proj.weight,
        )

    def mix_step(self, x: Tensor, state: LandmarkMemory, *, mask: Tensor | None) -> tuple[Tensor, LandmarkMemory]:
        """New tokens against retrieved blocks, the unfinished block and each other.

        Raises:
            ValueError: training with gradients, which the memory would cut, without `memory_in_training`.
        """
        if self.training and torch.is_grad_enabled() and not self.memory_in_training:
            raise ValueError("step in training mode needs memory_in_training=True: gradients do not reach the memory")
        return state.attend(*self._project(x), self.retrieval, mask=mask)

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The weights of the full pass."""
        q, k, _ = self._placed(x)
        if segments is None:
            return landmark_weights(q, k, block_size=self.block_size, bias=bias)
        landmarks = landmarks_of_segments(segments, self.block_size)
        return landmark_weights_of_layout(q, k, landmarks=landmarks, segments=segments, bias=bias)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values, repeated for the query heads that share them."""
        return repeat_heads(split_heads(self.v_proj(x), self.num_kv_heads), self.num_heads)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the layout of the compared code: `c_attn` and `c_proj`; its rotary pairs are neighbouring channels.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, own_layout(state_dict, num_heads=self.num_heads))

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, scores and weighted sums of slices, hidden keys included."""
        head_dim = options.dim // options.num_heads
        kv_width = head_dim * (options.num_kv_heads or options.num_heads)
        operator = landmark_attention_macs(
            tokens=tokens, block_size=options.block_size, head_dim=head_dim, value_dim=head_dim
        )
        return batch * (2 * tokens * options.dim * (options.dim + kv_width) + options.num_heads * operator)


def own_layout(state_dict: Mapping[str, Tensor], *, num_heads: int) -> dict[str, Tensor]:
    """`c_attn.weight` as `q_proj.weight`, `k_proj.weight` and `v_proj.weight`, with halves of channels for pairs."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        layer, _, kind = name.rpartition(".")
        if layer == "c_attn" and tensor.shape[0] % 3 == 0:
            q, k, v = tensor.chunk(3)
            renamed[f"q_proj.{kind}"] = halves_of_pairs(q, num_heads)
            renamed[f"k_proj.{kind}"] = halves_of_pairs(k, num_heads)
            renamed[f"v_proj.{kind}"] = v
        elif layer == "c_proj":
            renamed[f"o_proj.{kind}"] = tensor
        else:
            renamed[f"reference {name}"] = tensor
    return renamed


def halves_of_pairs(x: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's channels, on axis 0, so that rotary pairs, which were neighbours, are half a head apart."""
    return x.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def pairs_of_halves(x: Tensor, num_heads: int) -> Tensor:
    """The inverse of `halves_of_pairs`."""
    return x.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
