"""transformers: mechanisms as attention implementations of its models, with their masks and their caches.

```python
from regard.integrations.transformers import new_cache, register

register()
model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="regard_hip")
model.generate(**inputs, past_key_values=new_cache(model, "hip"))
```

A mechanism is registered together with its mask function, so that padding reaches it; a mask that it cannot keep is
refused. Mechanisms that remember something else than all keys come with caches of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache

from regard.integrations.transformers.attention import MECHANISMS, PREFIX, attention_function
from regard.integrations.transformers.caches import cache_of
from regard.integrations.transformers.masks import key_roles
from regard.integrations.transformers.mechanism import Mechanism
from regard.integrations.transformers.swap import swap
from regard.integrations.transformers.visual import redistribute_visual

__all__ = ["new_cache", "redistribute_visual", "register", "swap"]

_registered: dict[str, Mechanism] = {}


def register(options: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Tell transformers of all mechanisms that fit its attention interface, each with its mask function.

    Args:
        options: a mechanism's options by its name, such as `{"hip": {"mask_k": 128}}`; they hold until the next call.

    Returns:
        The names of the implementations, as `attn_implementation` takes them.

    Raises:
        ValueError: an unknown mechanism, or options that do not fit.
        TypeError: an option that the mechanism does not have.
    """
    given = dict(options or {})
    for name in given:
        _check_name(name)
    for name, make in MECHANISMS.items():
        mechanism = make(**given.get(name, {}))
        full = PREFIX + name
        _registered[name] = mechanism
        AttentionInterface.register(full, attention_function(full, mechanism))
        AttentionMaskInterface.register(full, key_roles)
    return [PREFIX + name for name in MECHANISMS]


def new_cache(model: nn.Module, name: str, *, max_len: int | None = None, **options: Any) -> Cache:
    """An empty cache for one prompt, which holds the mechanism's state for every layer; sets the model's attention.

    Args:
        model: a decoder of transformers.
        name: the mechanism.
        max_len: tokens of the prompt and its continuation together, if known: memory is set aside once, and mechanisms
            that keep all keys take no more tokens. None = memory grows as it is needed.
        options: its options; those of `register` where none are given.

    Raises:
        ValueError: `max_len` is not positive, an unknown mechanism, one that keeps no state, or a model with other
            layers than full attention.
        TypeError: an option that the mechanism does not have.
    """
    _check_name(name)
    if name not in _registered:
        register()
    mechanism = MECHANISMS[name](**options) if options else _registered[name]
    if mechanism.step is None:
        raise ValueError(f"{name} keeps no state of its own: any cache of transformers serves it")
    if max_len is not None and max_len < 1:
        raise ValueError(f"max_len must be at least 1 token, got {max_len}")
    step = mechanism.step
    cache = cache_of(model, PREFIX + name, lambda config, layer: step(config, layer, max_len))
    model.set_attn_implementation(PREFIX + name)  # type: ignore[operator]
    return cache


def _check_name(name: str) -> None:
    if name not in MECHANISMS:
        raise ValueError(f"transformers has no mechanism {name!r} of ours, only {', '.join(sorted(MECHANISMS))}")
