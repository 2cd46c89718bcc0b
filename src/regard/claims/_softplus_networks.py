"""What the claims of softplus attention train: small decoders, read at lengths beyond the one they learned at."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from regard.claims._recall import VALIDATION_STEP, Passkey, fit_recall, recall_accuracy
from regard.claims._training import fit_language, language_loss, text_corpus
from regard.measure import one_thread
from regard.mixers.sequence.softplus import LSSAAttention
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.ops.heads import split_heads
from regard.ops.rotary import rotate
from regard.ops.softplus_attention import Phi, softplus_weights
from regard.ops.visibility import visible_keys

Kind = Literal["softmax", "lssa", "lssar15", "lssar3", "lssar15 without l1", "lssar15 relu", "lssa exp"]


@dataclass(frozen=True)
class Recipe:
    """How the language models are trained, and up to which multiple of that length they are read."""

    steps: int = 500
    batch: int = 16
    length: int = 64
    multiples: tuple[int, ...] = (1, 2, 4, 8, 16)
    evaluated: int = 32_768
    heads: int = 4


RECIPE = Recipe()
RECIPE_TEXT = (
    "bytes of tiny Shakespeare, rotary positions, 3 layers, width 64, 4 heads, trained at 64 tokens for 500 steps of "
    "16 rows (learning rate 3e-3), read at 64 to 1,024"
)

ONE_HEAD = Recipe(heads=1)
ONE_HEAD_TEXT = RECIPE_TEXT.replace("4 heads", "1 head of 64")


@dataclass(frozen=True)
class Parts:
    """Softplus attention with parts taken away or replaced."""

    power: int | None = None
    phi: Phi = "softplus"
    l1: bool = True


_ABLATED: dict[str, Parts] = {
    "lssar15 without l1": Parts(power=15, l1=False),
    "lssar15 relu": Parts(power=15, phi="relu"),
    "lssa exp": Parts(phi="exp"),
}


class AblatedAttention(nn.Module):
    """Causal softplus attention, whole map by whole map, with parts taken away or replaced.

    Args:
        inner: where projections and rotary positions are taken from.
        parts: what is left.
    """

    def __init__(self, inner: LSSAAttention, parts: Parts) -> None:
        super().__init__()
        self.inner, self.parts = inner, parts

    def forward(self, x: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """All rows are whole: neither a mask nor segments are taken."""
        assert mask is segments is None
        mixer, tokens = self.inner, x.shape[1]
        q, k, v = (split_heads(project(x), mixer.num_heads) for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
        if mixer.rope_base is not None:
            positions = torch.arange(tokens)[None]
            q, k = (rotate(part, positions, base=mixer.rope_base) for part in (q, k))
        visible = visible_keys(tokens, tokens, causal=True, device=x.device)
        parts = self.parts
        weights = softplus_weights(q, k, visible=visible, power=parts.power, phi=parts.phi, l1=parts.l1)
        return mixer.out(weights @ v, x)


def network(kind: Kind, config: DecoderConfig) -> Decoder:
    """A decoder with one kind of attention in all layers."""
    if kind in _ABLATED:
        model = Decoder(replace(config, mixer="lssa"))
        for block, inner in zip(model.blocks, model.mixers(), strict=True):
            assert isinstance(inner, LSSAAttention)
            block.mixer = AblatedAttention(inner, _ABLATED[kind])
        return model
    options = {"lssar15": {"power": 15}, "lssar3": {"power": 3}}.get(kind, {})
    mixer = "softplus" if options else kind
    return Decoder(replace(config, mixer=mixer, mixer_options=options))


@functools.cache
def losses_by_length(kind: Kind, seed: int, recipe: Recipe = RECIPE) -> tuple[float, ...]:
    """Nats per byte of held-out text at every multiple of the training length; the same bytes at each.

    Raises:
        FloatingPointError: training diverges.
    """
    corpus = text_corpus()
    with one_thread():
        torch.manual_seed(seed)
        model = network(kind, DecoderConfig(dim=64, num_layers=3, num_heads=recipe.heads))
        fit_language(model, corpus, steps=recipe.steps, batch=recipe.batch, length=recipe.length, seed=seed)
        longest = recipe.length * max(recipe.multiples)
        return tuple(
            language_loss(model, corpus, length=recipe.length * each, longest=longest, total=recipe.evaluated)
            for each in recipe.multiples
        )


def mean_by_length(kind: Kind, seeds: Sequence[int], recipe: Recipe = RECIPE) -> list[float]:
    """The mean over seeds at every length."""
    rows = [losses_by_length(kind, seed, recipe) for seed in seeds]
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


# --------------------------------------------------------------------------------------------------- passkey


@dataclass(frozen=True)
class PasskeyRecipe:
    """How the networks learn to find a digit in noise."""

    steps: int = 250
    batch: int = 32
    length: int = 64
    multiples: tuple[int, ...] = (1, 2, 4)
    tested: int = 500


PASSKEY = PasskeyRecipe()
PASSKEY_TEXT = (
    "a digit of 10 behind its marker, anywhere in noise of 16 tokens, asked at the end; 2 layers, width 64, 4 heads, "
    "rotary positions, trained at 64 tokens for 250 steps of 32 rows (learning rate 3e-3), 500 new rows at each length"
)


@functools.cache
def passkey_accuracy(kind: Kind, seed: int, recipe: PasskeyRecipe = PASSKEY) -> tuple[float, ...]:
    """Share of digits that are found, at every multiple of the training length."""
    task = Passkey()
    with one_thread():
        torch.manual_seed(seed)
        model = network(kind, DecoderConfig(vocab_size=task.vocab_size, dim=64, num_layers=2, num_heads=4))

        def examples(step: int) -> tuple[Tensor, Tensor]:
            return task.examples(batch=recipe.batch, length=recipe.length, seed=seed, step=step)

        fit_recall(model, examples, steps=recipe.steps, learning_rate=3e-3, seed=seed)
        found = []
        for multiple in recipe.multiples:
            tested = task.examples(
                batch=recipe.tested, length=multiple * recipe.length, seed=seed, step=VALIDATION_STEP
            )
            found.append(recall_accuracy(model, tested))
        return tuple(found)
