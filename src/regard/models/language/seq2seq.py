"""What every sequence-to-sequence model offers: scores in parallel, encoding once, decoding step by step, the loss.

A target begins with its start token and ends with its end token; the scores at a target token are those of the next
one. Sources and targets may be padded anywhere: masks are per row, and padding is moved to the right end before
anything else happens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.contract import Model, State, load_strictly, state, static
from regard.layers.kv_cache import KVCache
from regard.ops.precision import compute_dtype
from regard.packing import pack_rows, take_tokens

IGNORED = -100


@dataclass(frozen=True)
class Seq2SeqOutput:
    """What `forward` gives.

    Args:
        target: scores of the token after every target token, `(batch, target, vocab)`; 0 at padding.
        source: scores of source tokens, `(batch, source, vocab)`; None in models that do not model their source.
        source_shift: which source token the scores at a source token are of: 1 = the next one (the encoder does not
            look ahead), 0 = the token itself (it sees all, and the next one would be copied).
    """

    target: Float[Tensor, "batch target vocab"]
    source: Float[Tensor, "batch source vocab"] | None = None
    source_shift: int = 0


@state
class Seq2SeqState(State):
    """What is kept of a source and of the target so far; `position` counts target tokens per row."""

    caches: tuple[KVCache, ...]
    """Keys and values of self-attention, one per layer; in decoder-only models the source's are in them too."""
    sources: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values of the source for cross or partial attention, one pair per layer that has it."""
    source_mask: Bool[Tensor, "batch source"]
    """True = real source token; real tokens come first."""
    padded: bool = static()
    """Whether `source_mask` hides anything: not known without looking at it."""
    length: int = static()
    """Target tokens so far, as a number."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed batch are.

    Args:
        source_mask: True = real; None = all.
        source_positions: positions of the source's tokens.
        target_positions: positions of the target's tokens.
    """

    source_mask: Bool[Tensor, "batch source"] | None
    source_positions: Int[Tensor, "1 source"]
    target_positions: Int[Tensor, "#batch target"]


class Seq2SeqModel(Model):
    """A model of targets given sources, over one vocabulary for both.

    A subclass is final. It implements `embed`, `transform`, `scores` and `encode_packed`, `step_packed`;
    `config` has `vocab_size`, `max_positions` and `pad_id`.
    """

    task: ClassVar[str] = "translation"
    SMALL: ClassVar[Any]

    source_shift: int = 0
    models_source: bool = False
    consecutive_positions: bool = False

    # -- hooks of a model, all on packed rows

    @abstractmethod
    def embed(
        self, tokens: Int[Tensor, "batch tokens"], positions: Int[Tensor, "#batch tokens"], *, is_source: bool
    ) -> Float[Tensor, "batch tokens dim"]:
        """Embeddings of tokens at their positions."""

    @abstractmethod
    def transform(
        self,
        source: Float[Tensor, "batch source dim"],
        target: Float[Tensor, "batch target dim"],
        layout: Layout,
        *,
        layers: list[Tensor] | None = None,
    ) -> tuple[Float[Tensor, "batch source dim"], Float[Tensor, "batch target dim"]]:
        """Last hidden states of source and target; the target's states after every layer are appended to `layers`."""

    @abstractmethod
    def scores(self, hidden: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of the vocabulary."""

    @abstractmethod
    def encode_packed(
        self, source: Float[Tensor, "batch source dim"], layout: Layout, max_len: int | None
    ) -> tuple[tuple[KVCache, ...], tuple[tuple[Tensor, Tensor], ...]]:
        """The caches and the kept keys and values of a source, from its embeddings."""

    @abstractmethod
    def step_packed(
        self, target: Float[Tensor, "batch tokens dim"], positions: Int[Tensor, "batch tokens"], state: Seq2SeqState
    ) -> tuple[Float[Tensor, "batch tokens dim"], tuple[KVCache, ...]]:
        """Last hidden states of new target tokens, and the caches with them."""

    # -- what users call

    def forward(
        self,
        source: Int[Tensor, "batch source"],
        target: Int[Tensor, "batch target"],
        *,
        source_mask: Bool[Tensor, "batch source"] | None = None,
        target_mask: Bool[Tensor, "batch target"] | None = None,
    ) -> Seq2SeqOutput:
        """Scores of every next target token, all at once.

        Args:
            source: ids below `config.vocab_size`.
            target: ids, from the start token on.
            source_mask: True = real token.
            target_mask: True = real token.

        Raises:
            ValueError: shapes that do not fit, an empty source, padding without a mask, or more tokens than positions.
        """
        packed_source, source_order, real_source = self._packed(source, source_mask, "source")
        packed_target, target_order, _ = self._packed(target, target_mask, "target")
        if source.shape[0] != target.shape[0]:
            raise ValueError(f"source has {source.shape[0]} rows and target has {target.shape[0]}: they must be equal")
        layout = self.layout(packed_source, packed_target, real_source)
        hidden_source, hidden_target = self.transform(
            self.embed(packed_source, layout.source_positions, is_source=True),
            self.embed(packed_target, layout.target_positions, is_source=False),
            layout,
        )
        of_source = _unpacked(self.scores(hidden_source), source_mask, source_order) if self.models_source else None
        of_target = _unpacked(self.scores(hidden_target), target_mask, target_order)
        return Seq2SeqOutput(of_target, of_source, self.source_shift)

    def encode(
        self,
        source: Int[Tensor, "batch source"],
        source_mask: Bool[Tensor, "batch source"] | None = None,
        *,
        max_len: int | None = None,
    ) -> Seq2SeqState:
        """Read a source whole: what `step` starts from.

        Args:
            source: ids.
            source_mask: True = real token.
            max_len: number of target tokens to make room for, if known.

        Raises:
            ValueError: as `forward`, or `max_len` is not positive.
        """
        if max_len is not None and max_len < 1:
            raise ValueError(f"max_len must be positive or None, got {max_len}")
        packed, _, real = self._packed(source, source_mask, "source")
        layout = self.layout(packed, packed[:, :1], real)
        embedded = self.embed(packed, layout.source_positions, is_source=True)
        caches, sources = self.encode_packed(embedded, layout, max_len)
        position = torch.zeros(source.shape[0], dtype=torch.int64, device=source.device)
        kept = torch.ones_like(packed, dtype=torch.bool) if real is None else real
        return Seq2SeqState(
            position=position, caches=caches, sources=sources, source_mask=kept, padded=real is not None, length=0
        )

    def step(
        self, target_tokens: Int[Tensor, "batch tokens"], state: Seq2SeqState
    ) -> tuple[Float[Tensor, "batch tokens vocab"], Seq2SeqState]:
        """Scores after one or more target tokens that follow those in `state`; it is consumed.

        Args:
            target_tokens: ids; the first call begins with the start token.
            state: from `encode` or an earlier `step`; `state.reorder(index)` picks rows (beam search).

        Raises:
            ValueError: another number of rows than the state has, or more tokens than there are positions.
        """
        _check_ids(target_tokens, "target_tokens")
        if target_tokens.shape[0] != state.position.shape[0]:
            raise ValueError(
                f"target_tokens has {target_tokens.shape[0]} rows and the state has {state.position.shape[0]}: "
                "a state belongs to the sources that it was encoded from"
            )
        new = target_tokens.shape[1]
        length = state.length + new
        self._check_room(length + state.source_mask.shape[1] if self.consecutive_positions else length)
        positions = state.position[:, None] + torch.arange(new, device=target_tokens.device)
        if self.consecutive_positions:
            positions = positions + state.source_mask.sum(dim=1, keepdim=True)
        hidden, caches = self.step_packed(self.embed(target_tokens, positions, is_source=False), positions, state)
        after = replace(state, position=state.position + new, caches=caches, length=length)
        return self.scores(hidden), after

    def layout(
        self,
        source: Int[Tensor, "batch source"],
        target: Int[Tensor, "batch target"],
        source_mask: Bool[Tensor, "batch source"] | None,
    ) -> Layout:
        """Positions of packed rows: the source's from 0, the target's from 0 or from the row's own source length.

        Raises:
            ValueError: more tokens than there are positions.
        """
        length, new = source.shape[1], target.shape[1]
        self._check_room(length + new if self.consecutive_positions else max(length, new))
        places = torch.arange(max(length, new), device=source.device)[None]
        rows = places[:, :new]
        if self.consecutive_positions:
            rows = rows + (length if source_mask is None else source_mask.sum(dim=1, keepdim=True))
        return Layout(source_mask, places[:, :length], rows)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load this model's own layout: the authors published no code.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, state_dict)

    # -- checks and packing

    def _check_room(self, needed: int) -> None:
        if self.config.positions == "learned" and needed > self.config.max_positions:
            raise ValueError(f"{needed} positions are needed and max_positions is {self.config.max_positions}")

    def _packed(self, tokens: Tensor, mask: Tensor | None, name: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The rows with padding at the right, the order that made them so, and their mask."""
        _check_ids(tokens, name)
        looking = not torch.compiler.is_compiling()
        if mask is None:
            pad = self.config.pad_id
            if pad is not None and looking and bool((tokens == pad).any()):
                raise ValueError(f"{name} has padding (id {pad}) and no {name}_mask: one is needed, True = real token")
            return tokens, None, None
        if mask.dtype != torch.bool or mask.shape != tokens.shape:
            raise ValueError(
                f"{name}_mask must be bool of shape {tuple(tokens.shape)}, got {mask.dtype} of {tuple(mask.shape)}"
            )
        if looking and not bool(mask.any(dim=1).all()):
            empty = int(mask.any(dim=1).logical_not().nonzero()[0])
            raise ValueError(f"{name} row {empty} has length 0: every row needs at least 1 real token")
        order, real = pack_rows(mask)
        return take_tokens(tokens, order, dim=1), order, real


def _check_ids(tokens: Tensor, name: str) -> None:
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"{name} must have shape (batch, tokens) with at least 1 token, got {tuple(tokens.shape)}")
    if tokens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64, got {tokens.dtype}")


def _unpacked(scores: Tensor, mask: Tensor | None, order: Tensor | None) -> Tensor:
    if mask is None or order is None:
        return scores
    return torch.where(mask[..., None], take_tokens(scores, torch.argsort(order, dim=1), dim=1), 0)


# --------------------------------------------------------------------------------------------------- the loss


def seq2seq_loss(
    output: Seq2SeqOutput,
    source: Int[Tensor, "batch source"],
    target: Int[Tensor, "batch target"],
    *,
    source_mask: Bool[Tensor, "batch source"] | None = None,
    target_mask: Bool[Tensor, "batch target"] | None = None,
    label_smoothing: float = 0.0,
    source_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy of the next target token, and `source_weight` times that of the source's auto-encoding.

    Both are means over real tokens, in nats; targets are shifted here, not by the caller.

    Args:
        output: from the model's `forward` on these sources and targets.
        source: ids.
        target: ids, from the start token to the end token.
        source_mask: True = real token.
        target_mask: True = real token.
        label_smoothing: share of the probability that is spread over the vocabulary, for the target; 0.1 in the paper.
        source_weight: weight lambda of the source's loss.

    Raises:
        ValueError: a weight for a source that the model does not model, a weight or a smoothing out of range, or
            targets of one token, after which nothing follows.
    """
    if source_weight < 0 or not 0 <= label_smoothing < 1:
        raise ValueError(
            f"source_weight must be >= 0 and label_smoothing in [0, 1), got {source_weight} and {label_smoothing}"
        )
    if target.shape[1] < 2:
        raise ValueError(f"targets need at least 2 tokens, start and one to predict, got {target.shape[1]}")
    loss = next_token_loss(output.target, target, target_mask, shift=1, label_smoothing=label_smoothing)
    if source_weight == 0:
        return loss
    if output.source is None:
        raise ValueError(f"source_weight is {source_weight}, but the model gives no scores of its source")
    return loss + source_weight * next_token_loss(output.source, source, source_mask, shift=output.source_shift)


def next_token_loss(
    scores: Float[Tensor, "batch tokens vocab"],
    tokens: Int[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"] | None,
    *,
    shift: int,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the real token `shift` places on from each real token; real tokens are contiguous.

    Args:
        scores: of the vocabulary at every token.
        tokens: ids.
        mask: True = real token.
        shift: 1 = the next token, 0 = the token itself.
        label_smoothing: share of the probability that is spread over the vocabulary.
    """
    length = tokens.shape[1]
    labels = tokens[:, shift:]
    if mask is not None:
        labels = labels.masked_fill(~(mask[:, shift:] & mask[:, : length - shift]), IGNORED)
    wide = scores[:, : length - shift].flatten(0, 1).to(compute_dtype(scores))
    total = F.cross_entropy(
        wide, labels.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    # sources of one token have no next one: nothing to predict costs nothing
    return total / (labels != IGNORED).sum().clamp(min=1)
