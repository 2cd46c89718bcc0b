"""What claims about distilled attention share: a small language model whose attention can be replaced and taught.

A student starts as a copy of the trained teacher with other attention around the same projections. It learns, all
weights together, from the text, from the teacher's predictions and hidden states, and, layer by layer, from what the
teacher's attention gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.claims._training import TextCorpus, fit, windows
from regard.layers.random_features import RandomFeatures
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.heads import merge_heads, split_heads
from regard.ops.linear_attention import linear_attention_weights
from regard.ops.performer_features import performer_attention
from regard.ops.softmax_attention import softmax_attention

VOCABULARY = 256
Projected = tuple[Tensor, Tensor, Tensor]


class ProjectedStudent(nn.Module):
    """Attention around a softmax teacher's projections, for subclasses that say what happens between them."""

    def __init__(self, teacher: SoftmaxAttention) -> None:
        super().__init__()
        self.num_heads = teacher.num_heads
        self.q_proj, self.k_proj = copy.deepcopy(teacher.q_proj), copy.deepcopy(teacher.k_proj)
        self.v_proj, self.o_proj = copy.deepcopy(teacher.v_proj), copy.deepcopy(teacher.o_proj)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention between the projections."""
        raise NotImplementedError

    def project(self, x: Tensor) -> Projected:
        """Queries, keys and values."""
        return project(self, x)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The whole layer."""
        y: Tensor = self.o_proj(merge_heads(self.attend(*self.project(x))))
        return y

    def lesson(self, x: Tensor, teacher_q: Tensor, teacher_k: Tensor, teacher_v: Tensor) -> tuple[Tensor, Tensor]:
        """The whole layer, and the mean squared error of what enters its last projection."""
        with torch.no_grad():
            wanted = softmax_attention(teacher_q, teacher_k, teacher_v, causal=True)
        mixed = self.attend(*self.project(x))
        return self.o_proj(merge_heads(mixed)), F.mse_loss(mixed, wanted)


class PerformerStudent(ProjectedStudent):
    """Performer with the relu features that SEA's own estimate starts from."""

    def __init__(self, teacher: SoftmaxAttention) -> None:
        super().__init__(teacher)
        self.features = RandomFeatures(teacher.head_dim, causal=True)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """In linear time."""
        phi_q, phi_k = self.features(q * q.shape[-1] ** -0.5, k)
        return performer_attention(phi_q, phi_k, v, causal=True)

    def weights(self, x: Tensor) -> Float[Tensor, "batch heads tokens keys"]:
        """The map that its features imply."""
        q, k, _ = self.project(x)
        phi_q, phi_k = self.features(q * q.shape[-1] ** -0.5, k)
        return linear_attention_weights(phi_q, phi_k, normaliser_eps=0.0)


class HashedStudent(ProjectedStudent):
    """Attention to the latest keys that fall into a query's bucket in any of several random hashes, and to itself.

    As in Reformer a bucket is the nearest of random directions and their opposites; here queries and keys stay apart.

    Args:
        teacher: whose projections it takes.
        keys: at most so many keys are seen.
        buckets: number of buckets; even.
        rounds: number of hashes.
    """

    def __init__(self, teacher: SoftmaxAttention, *, keys: int, buckets: int = 8, rounds: int = 4) -> None:
        super().__init__(teacher)
        self.keys = keys
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("directions", torch.randn(rounds, teacher.head_dim, buckets // 2, generator=generator))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As a masked square: only its quality is of interest here."""
        tokens = q.shape[2]
        of_queries, of_keys = (self._buckets(x) for x in (q, k))
        met = (of_queries[..., :, None, :] == of_keys[..., None, :, :]).any(dim=-1)
        itself = torch.eye(tokens, dtype=torch.bool)
        met = (met | itself).tril()
        latest = met.flip(3).cumsum(dim=3).flip(3) <= self.keys
        return softmax_attention(q, k, v, visible=met & latest)

    def _buckets(self, x: Tensor) -> Int[Tensor, "batch heads tokens rounds"]:
        sides = torch.einsum("bhnd,rde->bhnre", x, self.get_buffer("directions"))
        return torch.cat((sides, -sides), dim=-1).argmax(dim=-1)


class WindowStudent(ProjectedStudent):
    """Attention to the last tokens.

    Args:
        teacher: whose projections it takes.
        keys: so many keys are seen, the token itself included.
    """

    def __init__(self, teacher: SoftmaxAttention, *, keys: int) -> None:
        super().__init__(teacher)
        self.keys = keys

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As a masked square: only its quality is of interest here."""
        place = torch.arange(q.shape[2])
        age = place[:, None] - place
        return softmax_attention(q, k, v, visible=((age >= 0) & (age < self.keys))[None, None])


def project(mixer: Any, x: Tensor) -> Projected:
    """Queries, keys and values of softmax attention without rotary embedding."""
    q, k, v = (split_heads(p(x), mixer.num_heads) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    return q, k, v


class SmallLanguageModel(nn.Module):
    """Pre-norm transformer over bytes with learned positions, whose attention can be replaced.

    Args:
        dim: width.
        num_heads: heads.
        num_layers: layers.
        length: the longest text.
    """

    def __init__(self, *, dim: int, num_heads: int, num_layers: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, dim)
        self.places = nn.Parameter(0.02 * torch.randn(length, dim))
        layers = range(num_layers)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in layers)
        self.mixers = nn.ModuleList(SoftmaxAttention(dim, num_heads=num_heads, causal=True) for _ in layers)
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
            for _ in layers
        )
        self.last_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, VOCABULARY)

    def stream(self, tokens: Int[Tensor, "batch tokens"]) -> tuple[list[Tensor], list[Tensor]]:
        """What enters each layer's attention, and what leaves each layer."""
        return self._run(tokens, lambda _, mixer, x: mixer(x))

    def lessons(
        self, tokens: Int[Tensor, "batch tokens"], projected: Sequence[Projected]
    ) -> tuple[list[Tensor], Tensor]:
        """What leaves each layer, and the sum of all layers' losses against a teacher's projections."""
        losses: list[Tensor] = []

        def attend(layer: int, mixer: Any, x: Tensor) -> Tensor:
            y, loss = mixer.lesson(x, *projected[layer])
            losses.append(loss)
            return y

        return self._run(tokens, attend)[1], torch.stack(losses).sum()

    def _run(
        self, tokens: Tensor, attend: Callable[[int, nn.Module, Tensor], Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        x = self.embed(tokens) + self.places[: tokens.shape[1]]
        entering, leaving = [], []
        for layer, (norm, mixer, mlp) in enumerate(zip(self.norms, self.mixers, self.mlps, strict=True)):
            entering.append(norm(x))
            x = x + attend(layer, mixer, entering[-1])
            x = x + mlp(x)
            leaving.append(x)
        return entering, leaving

    def predict(self, hidden: Tensor) -> Tensor:
        """Scores of the next byte, from what leaves the last layer."""
        scores: Tensor = self.head(self.last_norm(hidden))
        return scores

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens bytes"]:
        """Scores of the next byte."""
        return self.predict(self.stream(tokens)[1][-1])


def student_of(teacher: SmallLanguageModel, replace: Callable[[SoftmaxAttention], nn.Module]) -> SmallLanguageModel:
    """A copy of the teacher with other attention in every layer."""
    student = copy.deepcopy(teacher)
    student.mixers = nn.ModuleList(replace(mixer) for mixer in teacher.mixers)  # type: ignore[arg-type]
    return student


def distil(
    teacher: SmallLanguageModel,
    student: SmallLanguageModel,
    corpus: TextCorpus,
    *,
    steps: int,
    batch: int,
    length: int,
    learning_rate: float,
) -> None:
    """Teach the student, in place: text, predictions, hidden states, and every layer's attention."""

    def lesson(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
        assert isinstance(model, SmallLanguageModel)
        inputs, targets = data
        with torch.no_grad():
            their_inputs, their_outputs = teacher.stream(inputs)
            their_scores = teacher.predict(their_outputs[-1]).log_softmax(dim=-1)
            projected = [project(mixer, x) for mixer, x in zip(teacher.mixers, their_inputs, strict=True)]
        leaving, of_attention = model.lessons(inputs, projected)
        scores = model.predict(leaving[-1]).log_softmax(dim=-1)
        loss = F.nll_loss(scores.flatten(0, 1), targets.flatten())
        loss = loss + F.kl_div(scores, their_scores, log_target=True, reduction="none").sum(dim=-1).mean()
        for ours, theirs in zip(leaving, their_outputs, strict=True):
            loss = loss + F.mse_loss(ours, theirs)
        return loss + of_attention

    def sample(step: int) -> tuple[Tensor, Tensor]:
        return windows(corpus.train, seed=1, step=step, batch=batch, length=length)

    fit(student, sample, lesson, steps=steps, learning_rate=learning_rate)
