"""Replacing a model's attention modules by mixers, with their own decoding state in whatever cache `generate` makes.

For mechanisms that do not work on a model's queries, keys and values: recurrences, linear attention, memories. The
mixer gets the layer's input; rotary embedding and norms of queries and keys are its own matter, so that a swapped
model has to be trained further.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from regard.contract import SequenceMixer, State
from regard.integrations.transformers.caches import StateLayer
from regard.integrations.transformers.masks import is_roles, real_queries
from regard.registry import create, get_class

COPIED = ("q_proj", "k_proj", "v_proj", "o_proj")


class MixerAttention(nn.Module):
    """A mixer in the place of a decoder's attention module.

    Args:
        mixer: causal, with a decoding state.
        layer_idx: the layer's number in the model's cache.
    """

    def __init__(self, mixer: SequenceMixer, layer_idx: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.layer_idx = layer_idx
        self.is_causal = True

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        layer_past: Cache | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """As a model's attention module: results and no weights; `options` are the model's, which concern others.

        Raises:
            ValueError: a mask of a kind that the mixer cannot keep.
        """
        cache = past_key_values if past_key_values is not None else layer_past
        real = _real_tokens(attention_mask, hidden_states.shape[1])
        if cache is None:
            return self.mixer(hidden_states, mask=real), None
        layer = _layer_of(cache, self.layer_idx)
        state = layer.state
        if state is None:
            state = self.mixer.init_state(len(hidden_states))
        y, layer.state = self.mixer.step(hidden_states, state, mask=real)
        layer.seen += hidden_states.shape[1]
        return y, None


def swap(model: nn.Module, name: str, layers: Iterable[int] | None = None, **options: Any) -> list[int]:
    """Replace the attention of some layers of a decoder by a mixer; the model is changed.

    Projections named `q_proj`, `k_proj`, `v_proj` and `o_proj` are copied where the mixer has them in the same shape.

    Args:
        model: a decoder of transformers.
        name: the mixer's.
        layers: numbers of the layers; None = all.
        options: the mixer's constructor arguments beside `dim`, `num_heads` and `causal`.

    Returns:
        The numbers of the layers that were replaced.

    Raises:
        ValueError: no decoder layers to be found, a layer that there is not, or a mixer without a causal form or a
            decoding state.
    """
    blocks = _decoder_layers(model)
    chosen = sorted(set(range(len(blocks)) if layers is None else layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= len(blocks):
        raise ValueError(f"layers must be among 0 to {len(blocks) - 1}, got {chosen}")
    config: Any = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    made = [_mixer_for(name, config, number, len(blocks), options) for number in chosen]
    for number, mixer in zip(chosen, made, strict=True):
        place = _attention_name(blocks[number])
        old = getattr(blocks[number], place)
        mixer.to(next(old.parameters()))
        _copy_projections(old, mixer)
        setattr(blocks[number], place, MixerAttention(mixer, number))
    return chosen


def _mixer_for(name: str, config: Any, number: int, count: int, options: dict[str, Any]) -> SequenceMixer:
    cls: Any = get_class(name)
    if not issubclass(cls, SequenceMixer):
        raise ValueError(f"{name} is no sequence mixer")
    for trait in ("causal", "decodes", "masks"):
        if not getattr(cls.traits, trait):
            raise ValueError(f"{name} cannot stand in a decoder: {getattr(cls.traits, trait).reason}")
    known = inspect.signature(cls).parameters
    given = {"layer_idx": number, "num_layers": count}
    fitting = {key: value for key, value in given.items() if key in known and key not in options}
    mixer = create(
        name, dim=config.hidden_size, num_heads=config.num_attention_heads, causal=True, **fitting, **options
    )
    assert isinstance(mixer, SequenceMixer)
    return mixer


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    found = [
        module
        for _, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and _attention_name(module[0], needed=False)
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no decoder layers with an attention module to replace")
    return found[0]


def _attention_name(block: nn.Module, *, needed: bool = True) -> str:
    for name in ("self_attn", "attention", "attn"):
        module = getattr(block, name, None)
        if isinstance(module, nn.Module) and getattr(module, "is_causal", False):
            return name
    if needed:
        raise ValueError(f"{type(block).__name__} has no causal attention module")
    return ""


def _copy_projections(old: nn.Module, mixer: nn.Module) -> None:
    with torch.no_grad():
        for name in COPIED:
            ours, theirs = getattr(mixer, name, None), getattr(old, name, None)
            if not isinstance(ours, nn.Linear) or not isinstance(theirs, nn.Linear):
                continue
            if ours.weight.shape == theirs.weight.shape:
                ours.weight.copy_(theirs.weight)
                if ours.bias is not None:
                    ours.bias.copy_(torch.zeros_like(ours.bias) if theirs.bias is None else theirs.bias)


def _layer_of(cache: Cache, number: int) -> StateLayer:
    """The cache's layer with this number, made one that holds a state."""
    while len(cache.layers) <= number:
        cache.layers.append(StateLayer("a swapped mixer", _no_step))
    if not isinstance(cache.layers[number], StateLayer):
        cache.layers[number] = StateLayer("a swapped mixer", _no_step)
    layer = cache.layers[number]
    assert isinstance(layer, StateLayer)
    return layer


def _no_step(q: Tensor, k: Tensor, v: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, State]:
    raise ValueError("this layer of the cache belongs to a swapped mixer, which has no queries, keys and values")


def _real_tokens(mask: Tensor | None, tokens: int) -> Tensor | None:
    """Which of the new tokens are real, from any of the masks that transformers makes.

    Raises:
        ValueError: a mask of another kind.
    """
    if mask is None:
        return None
    if mask.ndim == 4 and is_roles(mask):
        return real_queries(mask, tokens)
    if mask.ndim == 2:
        return mask[:, -tokens:].bool()
    if mask.ndim != 4:
        raise ValueError(f"a mask must have 2 or 4 axes, got shape {tuple(mask.shape)}")
    seen = mask if mask.dtype == torch.bool else mask == 0
    # a real token sees itself, and nothing sees padding
    own = seen[:, 0, :, seen.shape[3] - tokens :].diagonal(dim1=1, dim2=2)
    return own
