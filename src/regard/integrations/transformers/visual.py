"""VAR on a vision-language model: image positions from its own input ids, sinks from what enters each layer.

Nothing has to be handed to `generate`: hooks see the ids of the prompt and the hidden states before every layer. What
was found at the prompt holds for the tokens that follow.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import pad

from regard.integrations.transformers.masks import first_new_key, is_roles, real_keys
from regard.ops.redistributed_attention import redistributed_attention
from regard.ops.softmax_attention import softmax_attention
from regard.ops.visual_sinks import (
    SinkRule,
    active_layers,
    check_sink_dims,
    check_tau,
    detect_sink_dims,
    middle_layers,
    sink_tokens,
    tau_for_width,
)

ATTRIBUTE = "regard_visual"
"""Where an attention module finds what is known of its layer."""
IMPLEMENTATION = "regard_var"


class VisualRedistribution:
    """What VAR knows of one model while it runs: image tokens, sinks by layer. Made by `redistribute_visual`.

    Args:
        model: a vision-language model of transformers.
        rule: which heads give away attention, and how much.
        sink_dims: dimensions in which sinks are large.
        tau: what a sink exceeds there.
        layers: numbers of the layers in which attention is redistributed.
    """

    def __init__(
        self, model: nn.Module, *, rule: SinkRule, sink_dims: tuple[int, ...], tau: float, layers: range
    ) -> None:
        self.rule, self.sink_dims, self.tau, self.layers = rule, sink_dims, tau, layers
        self.image: Bool[Tensor, "batch keys"] | None = None
        self.sinks: dict[int, Bool[Tensor, "batch keys"]] = {}
        config: Any = model.config
        self._image_token = _image_token(config)
        self._handles = [model.register_forward_pre_hook(self._see_ids, with_kwargs=True)]
        for number, layer in enumerate(text_layers(model)):
            self._handles.append(layer.register_forward_pre_hook(self._hook_for(number), with_kwargs=True))
            for module in layer.modules():
                if getattr(module, "is_causal", False):
                    setattr(module, ATTRIBUTE, (self, number))

    def remove(self) -> None:
        """Take the hooks off; the model's attention has to be set anew."""
        for handle in self._handles:
            handle.remove()

    def _see_ids(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None or self._goes_on(kwargs):
            return
        self.image, self.sinks = ids == self._image_token, {}
        if not bool(self.image.any()):
            warnings.warn("the prompt has no image tokens: attention stays as it is", stacklevel=2)

    def _goes_on(self, kwargs: dict[str, Any]) -> bool:
        cache = kwargs.get("past_key_values")
        return cache is not None and int(cache.get_seq_length()) > 0

    def _hook_for(self, number: int) -> Any:
        def see_states(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states: Any = kwargs.get("hidden_states", args[0] if args else None)
            if number in self.layers and self.image is not None and number not in self.sinks:
                self.sinks[number] = sink_tokens(states, self.sink_dims, tau=self.tau)

        return see_states

    def attend(self, number: int, q: Tensor, k: Tensor, v: Tensor, roles: Tensor | None) -> Tensor:
        """What a layer's queries read from all keys, `(batch, heads, queries, value_dim)`."""
        keys = k.shape[2]
        mask = None if roles is None else real_keys(roles)
        first = keys - q.shape[2] if roles is None else first_new_key(roles)
        sinks = self.sinks.get(number)
        if sinks is None or self.image is None or not bool(self.image.any()):
            return _plain(q, k, v, mask, first)
        image, sinks = (pad(x, (0, keys - x.shape[1]))[:, :keys] for x in (self.image, sinks))
        return redistributed_attention(q, k, v, self.rule, image=image, sinks=sinks, first=first, mask=mask)


def redistribute_visual(
    model: nn.Module,
    *,
    sink_dims: Sequence[int] | None = None,
    tau: float | None = None,
    p: float = 0.6,
    rho: float = 0.5,
    summ: float = 0.2,
    begin: int = 2,
    except_last: bool = True,
) -> VisualRedistribution:
    """Make a vision-language model redistribute the attention of visual sinks; sets the attention of its text layers.

    Args:
        model: such as Llava, with `image_token_id` in its config.
        sink_dims: dimensions in which sinks are large; None = those of the first token in the middle layers.
        tau: what a sink exceeds there; None = 20, and less for models narrower than 4,096.
        p: what sinks keep of their attention.
        rho: the largest share of a head's visual attention that visual sinks may have.
        summ: the least attention that a head must give to the image.
        begin: the first layer in which attention is redistributed.
        except_last: leave the last layer alone.

    Raises:
        ValueError: a model without image tokens or text layers, numbers out of range, or no sink dimension found.
    """
    rule = SinkRule(p=p, rho=rho, summ=summ)
    _image_token(model.config)
    config: Any = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    threshold = tau_for_width(config.hidden_size) if tau is None else tau
    check_tau(threshold, config.hidden_size)
    if sink_dims is None:
        sink_dims = _detected(model, config, threshold)
    check_sink_dims(sink_dims, config.hidden_size)
    from regard.integrations.transformers import register

    register()
    layers = active_layers(config.num_hidden_layers, begin=begin, except_last=except_last)
    made = VisualRedistribution(model, rule=rule, sink_dims=tuple(sink_dims), tau=threshold, layers=layers)
    model.set_attn_implementation({"text_config": IMPLEMENTATION})  # type: ignore[operator]
    return made


def text_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a model's language part.

    Raises:
        ValueError: there are none.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(model).__name__} has no text decoder with layers")
    return layers


def visual_attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, roles: Tensor | None) -> Tensor:
    """The attention function's inside, for a module that `redistribute_visual` has marked.

    Raises:
        ValueError: the model was not prepared, or a mask of another kind.
    """
    found = getattr(module, ATTRIBUTE, None)
    if found is None:
        raise ValueError(f"{IMPLEMENTATION} needs redistribute_visual(model) first, which finds images and sinks")
    if roles is not None and not is_roles(roles):
        raise ValueError(f"{IMPLEMENTATION} keeps causal masks with padding, and this model asks for another one")
    seen, number = found
    mixed: Tensor = seen.attend(number, q, k, v, roles)
    return mixed


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, first: int | Tensor) -> Tensor:
    if mask is None and isinstance(first, int) and first == 0:
        return softmax_attention(q, k, v, causal=True)
    rows = torch.as_tensor(first, device=q.device).expand(len(q))[:, None] + torch.arange(q.shape[2], device=q.device)
    visible = (torch.arange(k.shape[2], device=q.device) <= rows[..., None])[:, None]
    return softmax_attention(q, k, v, visible=visible if mask is None else visible & mask[:, None, None])


def _image_token(config: Any) -> int:
    token = getattr(config, "image_token_id", None)
    if token is None:
        token = getattr(config, "image_token_index", None)
    if token is None:
        raise ValueError(f"{type(config).__name__} names no image_token_id: VAR needs a model that reads images")
    return int(token)


@torch.no_grad()
def _detected(model: nn.Module, config: Any, tau: float) -> tuple[int, ...]:
    begin = getattr(config, "bos_token_id", None)
    ids = torch.full((1, 2), 0 if begin is None else int(begin), device=next(model.parameters()).device)
    states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    entering = torch.stack([states[number][0, 0] for number in middle_layers(config.num_hidden_layers)])
    return detect_sink_dims(entering, tau=tau)
