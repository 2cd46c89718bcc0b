"""Conversion: a language model with trained softmax attention becomes one with another mechanism.

The mechanism takes over the trained projections (`from_softmax`), learns to mimic the softmax weights layer by layer
on what enters each layer of the teacher (`transfer_loss`), and is then trained on the task itself.

Papers: "The Hedgehog & the Porcupine", Zhang et al., ICLR 2024, https://arxiv.org/abs/2402.04347, section 4 (attention
transfer of all layers at once, then finetuning on the task); "SEA: Sparse Linear Attention with Estimated Attention
Mask", Lee et al., ICLR 2024, https://arxiv.org/abs/2310.01777, section 3 (transfer and, in finetuning, the teacher's
logits beside the task).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import UserError
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.language.decoder import Decoder
from regard.registry import get_class
from regard.tasks.language import Language
from regard.wording import shown


@runtime_checkable
class Convertible(Protocol):
    """A mixer that can take over trained softmax attention."""

    @classmethod
    def from_softmax(cls, teacher: SoftmaxAttention) -> Any:
        """The mixer with the teacher's projections."""

    def transfer_loss(self, x: Tensor) -> Tensor:
        """How unlike softmax attention of the same projections the mixer is on a layer's input."""


def convertible(name: str) -> bool:
    """Whether a registered mechanism can take over trained softmax attention."""
    return issubclass(get_class(name), Convertible)


def teacher_weight(name: str) -> float:
    """Weight of the teacher's logits while finetuning: a mechanism's `teacher_weight`, if its paper has one, else 0."""
    return float(getattr(get_class(name), "teacher_weight", 0.0))


def swap(teacher: Decoder, mechanism: str, options: Mapping[str, Any] | None = None) -> Decoder:
    """A copy of a trained network whose mixers are another mechanism with the trained projections.

    Args:
        teacher: a network with softmax attention; it is not changed.
        mechanism: the mechanism's registered name.
        options: arguments of its `from_softmax`.

    Raises:
        UserError: the network has no softmax attention, or the mechanism cannot take it over.
    """
    if not all(isinstance(mixer, SoftmaxAttention) for mixer in teacher.mixers()):
        raise UserError(f"only softmax attention can be converted, and this network has {teacher.config.mixer}")
    if not convertible(mechanism):
        raise UserError(f"{shown(mechanism)} cannot take over softmax attention: it has no from_softmax")
    cls: Any = get_class(mechanism)
    try:
        mixers = [cls.from_softmax(mixer, **(options or {})) for mixer in teacher.mixers()]
        inherited = {name: value for name, value in teacher.config.mixer_options.items() if name in _SHARED}
        config = replace(teacher.config, mixer=mechanism, mixer_options={**inherited, **(options or {})})
        student = Decoder(config).to(next(teacher.parameters()))
    except (TypeError, ValueError) as error:
        raise UserError(f"{mechanism}: {error}") from None
    with torch.no_grad():
        weights = {name: value for name, value in teacher.state_dict().items() if ".mixer." not in name}
        for layer, mixer in enumerate(mixers):
            weights |= {f"blocks.{layer}.mixer.{name}": value for name, value in mixer.state_dict().items()}
        student.load_state_dict(weights)
    return student.eval()


_SHARED = ("num_kv_heads", "qkv_bias", "rope_base")
"""Options of softmax attention that what takes it over has as well."""


class AttentionTransfer(Language):
    """Language data with another loss: every layer's `transfer_loss` on what enters that layer of the teacher.

    Args:
        language: with its data.
        teacher: the network with softmax attention.
    """

    name = "language"
    metric = "transfer"

    def __init__(self, language: Language, teacher: Decoder) -> None:
        super().__init__(language.settings)
        self.__dict__.update(vars(language))
        self.teacher = teacher.eval()

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The mean over layers."""
        assert isinstance(model, Decoder)
        mixers: list[Any] = list(model.mixers())
        inputs = mixer_inputs(self.teacher.to(batch.device), batch[:, :-1])
        losses = [mixer.transfer_loss(x) for mixer, x in zip(mixers, inputs, strict=True)]
        return torch.stack(losses).mean()

    def score(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """The loss, weighted by windows."""
        return {"transfer": self.loss(model, batch) * len(batch), "windows": torch.tensor(len(batch))}

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The mean loss."""
        return {"transfer": sums["transfer"] / sums["windows"]}


class TaughtLanguage(Language):
    """Language data whose loss also asks for the teacher's distribution of the next token.

    Args:
        language: with its data.
        teacher: the network with softmax attention.
        weight: of the Kullback-Leibler divergence from the teacher, beside the task's loss.
    """

    name = "language"

    def __init__(self, language: Language, teacher: Decoder, weight: float) -> None:
        super().__init__(language.settings)
        self.__dict__.update(vars(language))
        self.teacher, self.weight = teacher.eval(), weight

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Cross-entropy, and in training the divergence from the teacher."""
        scores = model(batch[:, :-1]).flatten(0, 1).float()
        loss = F.cross_entropy(scores, batch[:, 1:].flatten())
        if self.weight == 0 or not model.training:
            return loss
        with torch.no_grad():
            wanted = self.teacher.to(batch.device)(batch[:, :-1]).flatten(0, 1).float().log_softmax(dim=-1)
        divergence = F.kl_div(scores.log_softmax(dim=-1), wanted, log_target=True, reduction="batchmean")
        return loss + self.weight * divergence


@torch.no_grad()
def mixer_inputs(network: Decoder, tokens: Tensor) -> list[Tensor]:
    """What enters the mixer of every layer."""
    caught: list[Tensor] = []
    hooks = [
        mixer.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0])) for mixer in network.mixers()
    ]
    try:
        network(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return caught


def train_mixers_alone(model: Decoder) -> None:
    """Freeze everything but what the mixers have beside softmax attention's projections.

    `transfer_loss` takes softmax attention of a mixer's own projections as its teacher: were they trained as well, the
    teacher would move with its student, away from what the network learned.
    """
    model.requires_grad_(False)
    for mixer in model.mixers():
        for name, parameter in mixer.named_parameters():
            parameter.requires_grad_(not name.startswith(_TAKEN_OVER))


_TAKEN_OVER = ("q_proj.", "k_proj.", "v_proj.", "o_proj.")
"""What `from_softmax` copies."""


@dataclass(frozen=True)
class Stage:
    """A network's quality at one point of a conversion.

    Args:
        name: which point.
        metrics: bits per byte and perplexity on the validation part.
    """

    name: str
    metrics: dict[str, float]
