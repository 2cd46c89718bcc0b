"""What Hedgehog's claims train: small decoders whose feature maps differ, and decoders converted from softmax."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from regard.claims._recall import VALIDATION_STEP, Pairs, fit_recall, recall_accuracy
from regard.claims._training import fit, fit_language, language_loss, text_corpus, windows
from regard.layers.feature_maps import Activation
from regard.measure import one_thread
from regard.mixers.sequence.hedgehog import HedgehogAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.ops.distillation import attention_transfer_loss, order_agreement, row_entropy
from regard.ops.heads import split_heads
from regard.ops.performer_features import orthogonal_directions
from regard.ops.rotary import rotate

SEED = 0
MAPS: dict[str, Activation] = {"hedgehog": "softmax_dim", "t2r": "relu", "elu": "pos_elu"}
"""Linear attentions that are converted: Hedgehog's and T2R's maps are trained, 1 + elu has nothing to train."""


class PositiveRandomFeatures(nn.Module):
    """Performer's map: exp(w . x - |x|^2 / 2) for fixed orthogonal w, whose products are exp(q . k) on average.

    Args:
        head_dim: width of a head; x is divided by its fourth root, the scale of softmax.
        features: number of vectors w.
    """

    directions: Tensor

    def __init__(self, head_dim: int, features: int) -> None:
        super().__init__()
        self.register_buffer("directions", orthogonal_directions(features, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Features of queries or keys."""
        x = x * x.shape[-1] ** -0.25
        exponents = x @ self.directions.T - x.square().sum(dim=-1, keepdim=True) / 2
        return exponents.exp() * len(self.directions) ** -0.5


class TaylorAttention(nn.Module):
    """Causal attention with the Taylor map's weights in closed form, 1 + s + s^2 / 2 for s = q . k / sqrt(d).

    That is phi(q) . phi(k) of the map's 1 + d + d^2 features, which take longer than a short row's square of scores.

    Args:
        inner: where projections and rotary positions are taken from.
    """

    def __init__(self, inner: SoftmaxAttention) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """All rows are whole: neither a mask nor segments are taken."""
        assert mask is segments is None
        mixer, tokens = self.inner, x.shape[1]
        q, k, v = (split_heads(project(x), mixer.num_heads) for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
        if mixer.rope_base is not None:
            positions = torch.arange(tokens)[None]
            q, k = (rotate(part, positions, base=mixer.rope_base) for part in (q, k))
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        weights = (1 + scores + scores.square() / 2).tril()
        return mixer.out(weights / weights.sum(dim=-1, keepdim=True) @ v, x)


# --------------------------------------------------------------------------------------------------- recall


@dataclass(frozen=True)
class RecallRecipe:
    """How the networks learn to recall."""

    steps: int = 800
    batch: int = 32
    learning_rate: float = 3e-3
    tested: int = 512


RECALL = RecallRecipe()
RECALL_TEXT = (
    "2 layers, width 64, 2 heads, rotary positions; 24 pairs of 20 keys and 20 values (47 tokens and the asked one), "
    "800 steps of 32 rows, learning rate 3e-3, asked at every key seen before; accuracy on the last of 512 new rows"
)


def recall_network(kind: str) -> Decoder:
    """A decoder with softmax, Hedgehog, Taylor, 1 + elu or Performer attention."""
    softmax = DecoderConfig(vocab_size=Pairs().vocab_size, dim=64, num_layers=2, num_heads=2)
    if kind in ("softmax", "taylor"):
        model = Decoder(softmax)
        if kind == "taylor":
            for block, inner in zip(model.blocks, model.mixers(), strict=True):
                assert isinstance(inner, SoftmaxAttention)
                block.mixer = TaylorAttention(inner)
        return model
    activation = "pos_elu" if kind == "elu" else "softmax_dim"
    model = Decoder(replace(softmax, mixer="hedgehog", mixer_options={"feature_map": activation}))
    for mixer in model.mixers():
        assert isinstance(mixer, HedgehogAttention)
        if kind == "performer":
            features = PositiveRandomFeatures(mixer.head_dim, 2 * mixer.head_dim)
            setattr(mixer, "q_map", features)  # noqa: B010 - a map of a type that the mixer does not know
            setattr(mixer, "k_map", features)  # noqa: B010
        elif kind == "elu":
            _freeze_maps(mixer)
    return model


@functools.cache
def recall_of(kind: str, recipe: RecallRecipe = RECALL) -> float:
    """Accuracy of a trained network."""
    task = Pairs()
    with one_thread():
        torch.manual_seed(SEED)
        model = recall_network(kind)

        def examples(step: int) -> tuple[Tensor, Tensor]:
            return task.examples(batch=recipe.batch, seed=SEED, step=step)

        fit_recall(model, examples, steps=recipe.steps, learning_rate=recipe.learning_rate, seed=SEED)
        return recall_accuracy(model, task.examples(batch=recipe.tested, seed=SEED, step=VALIDATION_STEP))


# --------------------------------------------------------------------------------------------------- conversion


@dataclass(frozen=True)
class ConversionRecipe:
    """How the softmax teacher is trained, its maps are distilled, and the converted network is finetuned."""

    teacher_steps: int = 500
    distil_steps: int = 150
    finetune_steps: int = 150
    batch: int = 8
    length: int = 128
    distil_rate: float = 1e-2
    finetune_rate: float = 1e-3
    evaluated: int = 65_536


CONVERSION = ConversionRecipe()
CONVERSION_TEXT = (
    "bytes of tiny Shakespeare, 2 layers, width 64, 2 heads, rotary positions, 8 rows of 128 tokens; softmax trained "
    "for 500 steps (learning rate 3e-3), maps distilled for 150 (1e-2, no weight decay), all finetuned for 150 (1e-3)"
)


@dataclass(frozen=True)
class Mimicry:
    """How close an attention's maps are to the teacher's, on held-out text.

    Args:
        divergence: KL(teacher || student) in nats, mean over rows, heads and layers.
        entropy: mean entropy of the student's rows in nats.
        teacher_entropy: the same of the teacher's.
        agreement: share of pairs of keys that q . k and the student's weights put in the same order.
    """

    divergence: float
    entropy: float
    teacher_entropy: float
    agreement: float


@functools.cache
def teacher(recipe: ConversionRecipe = CONVERSION) -> Decoder:
    """The trained softmax network; not to be changed."""
    with one_thread():
        torch.manual_seed(SEED)
        model = Decoder(DecoderConfig(dim=64, num_layers=2, num_heads=2))
        fit_language(
            model, text_corpus(), steps=recipe.teacher_steps, batch=recipe.batch, length=recipe.length, seed=SEED
        )
        return model.eval().requires_grad_(False)


@functools.cache
def converted_mixers(
    kind: str, distilled: bool, recipe: ConversionRecipe = CONVERSION
) -> tuple[HedgehogAttention, ...]:
    """Linear attentions in the place of the teacher's, with its projections; distilled where they have what to train.

    Args:
        kind: one of `MAPS`.
        distilled: train the maps on the teacher's weights, all layers at once.
        recipe: how long.
    """
    model = teacher(recipe)
    mixers = tuple(
        HedgehogAttention.from_softmax(mixer, feature_map=MAPS[kind]).requires_grad_(False)
        for mixer in model.mixers()
        if isinstance(mixer, SoftmaxAttention)
    )
    if kind == "elu" or not distilled:
        return mixers
    for mixer in mixers:
        for parameter in mixer.map_parameters():
            parameter.requires_grad_(True)

    def batch(step: int) -> Tensor:
        inputs, _ = windows(
            text_corpus().train, seed=SEED + 1, step=step, batch=recipe.batch // 2, length=recipe.length
        )
        return inputs

    def loss(_: nn.Module, tokens: Tensor) -> Tensor:
        inputs = inputs_of_mixers(model, tokens)
        return torch.stack([mixer.transfer_loss(x) for mixer, x in zip(mixers, inputs, strict=True)]).mean()

    with one_thread():
        trained = nn.ModuleList(mixers)
        fit(trained, batch, loss, steps=recipe.distil_steps, learning_rate=recipe.distil_rate, weight_decay=0.0)
    trained.requires_grad_(False)
    return mixers


@torch.no_grad()
def inputs_of_mixers(model: Decoder, tokens: Tensor) -> list[Tensor]:
    """What every layer's attention is given."""
    inputs: list[Tensor] = []
    with _collected_inputs(model, inputs):
        model(tokens)
    return inputs


@contextmanager
def _collected_inputs(model: Decoder, into: list[Tensor]) -> Iterator[None]:
    handles = [
        mixer.register_forward_pre_hook(lambda _, arguments: into.append(arguments[0])) for mixer in model.mixers()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mimicry(kind: str, distilled: bool = True, recipe: ConversionRecipe = CONVERSION) -> Mimicry:
    """Maps of four held-out rows against the teacher's."""
    model, mixers = teacher(recipe), converted_mixers(kind, distilled, recipe)
    tokens, _ = windows(text_corpus().validation, seed=SEED, step=0, batch=4, length=recipe.length)
    visible = torch.ones(recipe.length, recipe.length, dtype=torch.bool).tril()
    found: list[list[float]] = []
    for softmax, linear, x in zip(model.mixers(), mixers, inputs_of_mixers(model, tokens), strict=True):
        with torch.no_grad():
            expected, weights = softmax.attention_map(x), linear.attention_map(x)
        teacher_entropy = float(row_entropy(expected))
        divergence = float(attention_transfer_loss(expected, weights)) - teacher_entropy
        # softmax's logarithm is q . k up to a number per row, which changes no order
        scores = expected.clamp(min=torch.finfo(expected.dtype).tiny).log()
        agreement = float(order_agreement(scores, weights, visible=visible))
        found.append([divergence, float(row_entropy(weights)), teacher_entropy, agreement])
    return Mimicry(*(sum(column) / len(column) for column in zip(*found, strict=True)))


@functools.cache
def finetuned_perplexity(kind: str, distilled: bool = True, recipe: ConversionRecipe = CONVERSION) -> float:
    """Perplexity per byte of the converted network after finetuning all its weights; "softmax" = the teacher itself."""
    with one_thread():
        model = copy.deepcopy(teacher(recipe)).requires_grad_(True)
        if kind != "softmax":
            for block, mixer in zip(model.blocks, converted_mixers(kind, distilled, recipe), strict=True):
                own = copy.deepcopy(mixer).requires_grad_(True)
                if kind == "elu":
                    _freeze_maps(own)
                block.mixer = own
        fit_language(
            model,
            text_corpus(),
            steps=recipe.finetune_steps,
            batch=recipe.batch,
            length=recipe.length,
            learning_rate=recipe.finetune_rate,
            seed=SEED + 2,
        )
        return perplexity(model, recipe)


def perplexity(model: nn.Module, recipe: ConversionRecipe = CONVERSION) -> float:
    """Perplexity per byte of held-out text."""
    return math.exp(language_loss(model, text_corpus(), length=recipe.length, total=recipe.evaluated))


def _freeze_maps(mixer: HedgehogAttention) -> None:
    """1 + elu has no matrices: they stay the identity."""
    for parameter in mixer.map_parameters():
        parameter.requires_grad_(False)
