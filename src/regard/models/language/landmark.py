"""The language model of landmark attention: GPT-2 with landmarks between its tokens, and a memory of all blocks.

Paper: "Landmark Attention: Random-Access Infinite Context Length for Transformers", Mohtashami and Jaggi, NeurIPS 2023,
https://arxiv.org/abs/2305.16300, section 4.1.
Compared with epfml/landmark-attention@d963e504, `lm_benchmark/models/landmark.py` (`GPTBase`), on which parameters are
counted. GPT-2 with rotary positions, pre-norm, without biases by default, the head tied to the embedding.

A user never sees a landmark: they are inserted behind every `block_size` tokens, and what the network says at them is
left out. Sequences of up to `seq_len` tokens are one pass. A longer one, and every `step`, is read in windows, each of
which retrieves from the memory: that is another computation, so `step` does not equal `forward`.
Different from the code: rows of a batch may differ in length. In the first layer all landmarks have the same key, and
among blocks with equal scores the newest is retrieved, where the code's choice is that of its sorting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from regard.contract import load_strictly, pack_rows, take_tokens
from regard.layers.landmark_memory import LandmarkMemory
from regard.layers.reference_names import rename
from regard.metadata import Reported, Variant
from regard.mixers.sequence.landmark import LANDMARK_PAPER, LandmarkAttention, own_layout
from regard.models.language.base import LanguageModel, ModelState
from regard.models.language.landmark_config import PAPER_CONFIG, LandmarkConfig
from regard.models.language.stack import LanguageBlock
from regard.ops.landmark_stream import IGNORED, Spacing, spaced_count, spacing, stream_targets
from regard.registry import register

REFERENCE_NAMES = (
    (r"^transformer\.wte\.", "embedding."),
    (r"^transformer\.ln_f\.", "norm."),
    (r"^transformer\.h\.(\d+)\.ln_1\.", r"blocks.\1.mixer_norm."),
    (r"^transformer\.h\.(\d+)\.ln_2\.", r"blocks.\1.mlp_norm."),
    (r"^transformer\.h\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.0."),
    (r"^transformer\.h\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.2."),
    (r"^transformer\.h\.(\d+)\.attn\.", r"blocks.\1.mixer."),
)
_CONSTANTS = ("transformer.wpe.freqs", ".attn.bias")
"""Buffers of the compared code that no training changes: rotary frequencies and the causal map."""


def _block(config: LandmarkConfig) -> LanguageBlock:
    dim, hidden = config.dim, config.hidden or 4 * config.dim
    mixer = LandmarkAttention(
        dim,
        num_heads=config.num_heads,
        block_size=config.block_size,
        top_k=config.top_k,
        selection=config.selection,
        max_blocks=config.max_blocks,
        offload=config.offload,
        as_compared=config.as_compared,
        qkv_bias=config.bias,
        out_bias=config.bias,
        rope_base=config.rope_base,
        gate_drop=config.gate_drop,
        attn_drop=config.dropout,
    )
    return LanguageBlock(
        mixer_norm=nn.LayerNorm(dim, bias=config.bias),
        mixer=mixer,
        mlp_norm=nn.LayerNorm(dim, bias=config.bias),
        mlp=nn.Sequential(
            nn.Linear(dim, hidden, bias=config.bias), nn.GELU(), nn.Linear(hidden, dim, bias=config.bias)
        ),
        dropout=config.dropout,
    )


@register(name="landmark_lm", system="landmark", paper=LANDMARK_PAPER)
class LandmarkLM(LanguageModel):
    """GPT-2 on landmark attention: trained on short texts, it reads long ones through a memory.

    x <- x + attention(norm(x)), x <- x + MLP(norm(x)) in every layer, over tokens and landmarks; a final norm; scores
    by the embedding.

    Args:
        config: its sizes.

    Raises:
        ValueError: an option that the mixer refuses.
    """

    SMALL: ClassVar[LandmarkConfig] = LandmarkConfig()
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "landmark_gpt2": Variant(
            config=PAPER_CONFIG,
            reported=Reported(params=202_531_840, where="counted on the authors' code", params_tolerance=0.0),
        ),
    }

    def __init__(self, config: LandmarkConfig) -> None:
        super().__init__()
        self.config: LandmarkConfig = config
        rows = config.vocab_size + (config.landmark_id is None)
        self.landmark_id = config.vocab_size if config.landmark_id is None else config.landmark_id
        self.embedding = nn.Embedding(rows, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim, bias=config.bias)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "mlp.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers))

    def mixers(self) -> list[LandmarkAttention]:
        """The mechanism of every layer."""
        return [block.mixer for block in self._blocks() if isinstance(block.mixer, LandmarkAttention)]

    def _blocks(self) -> list[LanguageBlock]:
        return [block for block in self.blocks if isinstance(block, LanguageBlock)]

    def _scores(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens vocab"]:
        return linear(self.norm(x), self.embedding.weight[: self.config.vocab_size])

    # -- one pass

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of the token after every token; more than `seq_len` of them are read through the memory.

        Raises:
            ValueError: segments, or more than `seq_len` tokens in training.
        """
        self.check_tokens(tokens)
        length, longest = tokens.shape[1], self.config.seq_len
        if segments is not None:
            raise ValueError("segments are not taken: landmarks stand behind every so many tokens of a row")
        if length > longest:
            if self.training:
                raise ValueError(f"tokens has {length} of them, training takes at most seq_len={longest}")
            return torch.cat([scores for scores, _ in self.read(tokens, mask=mask)], dim=1)
        if mask is None:
            return self._pass(tokens, None)
        order, packed = pack_rows(mask)
        scores = self._pass(take_tokens(tokens, order, dim=1), packed)
        return torch.where(mask[..., None], take_tokens(scores, torch.argsort(order, dim=1), dim=1), 0)

    def _pass(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        size = self.config.block_size
        spaced = spacing(tokens.shape[1], before=tokens.new_zeros(1, dtype=torch.int64), longest=0, block_size=size)
        x = self.dropout(self.embedding(spaced.insert(tokens, self.landmark_id)))
        if mask is not None:
            counts = mask.sum(dim=1)
            ends = spaced_count(counts, before=torch.zeros_like(counts), block_size=size)
            mask = torch.arange(x.shape[1], device=x.device) < ends[:, None]
        recompute = self.config.checkpointing and self.training and torch.is_grad_enabled()
        for block in self._blocks():
            x = checkpoint(block, x, mask, None, use_reentrant=False) if recompute else block(x, mask, None)
        return self._scores(_without_landmarks(x, spaced))

    def loss(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats of every token but the first, given those before; not after the end of a text."""
        targets = tokens[:, 1:].long()
        if self.config.end_id is not None:
            targets = torch.where(tokens[:, :-1] == self.config.end_id, IGNORED, targets)
        return cross_entropy(self(tokens[:, :-1]).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    # -- texts that hold landmarks already

    def stream_scores(self, ids: Int[Tensor, "batch places"]) -> Float[Tensor, "batch places vocab"]:
        """Scores at every place of texts with landmarks between their tokens, wherever these stand; one pass.

        Args:
            ids: tokens and landmarks.

        Raises:
            ValueError: more than `seq_len` tokens and their landmarks, or a landmark without a block.
        """
        self.check_tokens(ids)
        longest = self.config.seq_len + self.config.seq_len // self.config.block_size
        if ids.shape[1] > longest:
            raise ValueError(
                f"ids has {ids.shape[1]} places, seq_len={self.config.seq_len} with landmarks makes {longest}"
            )
        x, landmarks = self.dropout(self.embedding(ids)), ids == self.landmark_id
        for block, mixer in zip(self._blocks(), self.mixers(), strict=True):
            x = x + block.dropout(mixer.attend_layout(block.mixer_norm(x), landmarks))
            x = x + block.dropout(block.mlp(block.mlp_norm(x)))
        return self._scores(x)

    def stream_targets(self, ids: Int[Tensor, "batch places"]) -> Int[Tensor, "batch places"]:
        """What is predicted at every place of such texts; -1 = nothing."""
        return stream_targets(ids.long(), landmark_id=self.landmark_id, end_id=self.config.end_id)

    # -- through the memory

    def init_state(self, batch: int, *, max_len: int | None = None) -> ModelState:
        """One empty memory per layer; `max_len` counts tokens, not landmarks."""
        room = None if max_len is None else max_len + max_len // self.config.block_size
        return tuple(mixer.init_state(batch, max_len=room) for mixer in self.mixers())

    def step(
        self,
        tokens: Int[Tensor, "batch tokens"],
        state: ModelState,
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens vocab"], ModelState]:
        """Scores after tokens that follow those in `state`, read in windows."""
        pieces = []
        for scores, after in self.read(tokens, state, mask=mask):
            pieces.append(scores)
            state = after
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1), state

    def read(
        self,
        tokens: Int[Tensor, "batch tokens"],
        state: ModelState | None = None,
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Iterator[tuple[Float[Tensor, "batch window vocab"], ModelState]]:
        """Read a text of any length window by window; for each the scores, and the state behind it.

        Args:
            tokens: the text.
            state: what was read before; None = nothing. It is consumed.
            mask: True = real token.

        Raises:
            ValueError: a state of another number of rows.
        """
        self.check_tokens(tokens)
        state = self.init_state(len(tokens), max_len=tokens.shape[1]) if state is None else state
        for start in range(0, tokens.shape[1], self.config.window):
            window = slice(start, start + self.config.window)
            scores, state = self._read_window(tokens[:, window], state, None if mask is None else mask[:, window])
            yield scores, state

    def _read_window(self, tokens: Tensor, state: ModelState, mask: Tensor | None) -> tuple[Tensor, ModelState]:
        size, memory = self.config.block_size, state[0]
        assert isinstance(memory, LandmarkMemory)
        if len(memory.position) != len(tokens):
            raise ValueError(f"state has {len(memory.position)} rows and tokens has {len(tokens)}: they must be equal")
        equal = mask is None and not memory.ragged
        order, count = None, tokens.shape[1]
        counts = torch.full_like(memory.position, count)
        if mask is not None:
            order, _ = pack_rows(mask)
            tokens, counts = take_tokens(tokens, order, dim=1), mask.sum(dim=1)
        before = memory.position % (size + 1)
        longest = memory.filled % (size + 1) if equal else size - 1
        spaced = spacing(count, before=before, longest=longest, block_size=size)
        x, after = self.dropout(self.embedding(spaced.insert(tokens, self.landmark_id))), []
        ends = spaced_count(counts, before=before, block_size=size)
        real = None if equal else torch.arange(x.shape[1], device=x.device) < ends[:, None]
        for block, layer_state in zip(self._blocks(), state, strict=True):
            x, layer_after = block.step(x, layer_state, real)
            after.append(layer_after)
        scores = self._scores(_without_landmarks(x, spaced))
        if mask is None or order is None:
            return scores, tuple(after)
        return torch.where(mask[..., None], take_tokens(scores, torch.argsort(order, dim=1), dim=1), 0), tuple(after)

    # -- names

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout; constants and the head's copy of the embedding are left out.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape, a landmark outside the vocabulary, or a head of its own.
        """
        if self.config.landmark_id is None:
            raise ValueError("the authors' layout has the landmark in its vocabulary: give landmark_id")
        kept = {name: tensor for name, tensor in state_dict.items() if not name.endswith(_CONSTANTS)}
        head = kept.pop("lm_head.weight", None)
        if head is not None and not torch.equal(head, kept["transformer.wte.weight"]):
            raise ValueError("lm_head.weight differs from transformer.wte.weight: the head is tied to the embedding")
        renamed: dict[str, Any] = {}
        for name, tensor in kept.items():
            own = rename(name, REFERENCE_NAMES)
            place, inside, rest = own.partition(".mixer.")
            layers = own_layout({rest: tensor}, num_heads=self.config.num_heads) if inside else {"": tensor}
            renamed |= {f"{place}{inside}{part}": piece for part, piece in layers.items()}
        load_strictly(self, renamed)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _without_landmarks(x: Float[Tensor, "batch places dim"], spaced: Spacing) -> Float[Tensor, "batch tokens dim"]:
    places = spaced.places.expand(len(x), -1)
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
