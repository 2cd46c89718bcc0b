"""Caches that hold a mechanism's own decoding state, one per layer, for `generate` as it stands.

transformers hands an attention the keys that its cache returns, and never the cache. A layer here returns the new keys
alone and puts itself on them, so that the attention function finds the state that the keys belong to.
Padding takes no place in a state: rows of different lengths equal the same rows alone.
Written for transformers 5's `cache_utils`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from regard.contract import State
from regard.integrations.transformers.masks import real_queries
from regard.packing import pack_rows, take_tokens

OWNER = "regard_cache_layer"
"""The attribute of a keys' tensor that names the layer which returned it."""


class Advance(Protocol):
    """A mechanism's step: new tokens and the state before them (None at the start), to results and the state after."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, State]:
        """Results `(batch, heads, tokens, value_dim)`, and the state after."""


class StateLayer(CacheLayerMixin):
    """One layer's state.

    Args:
        name: the attention function that the layer belongs to, as registered.
        advance: how the layer's mechanism takes in tokens.
    """

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, name: str, advance: Advance) -> None:
        super().__init__()
        self.name = name
        self._advance = advance
        self._waiting = False
        self.state: State | None = None
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to set up: the mechanism builds its state from the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new keys and values alone, marked as this layer's.

        Raises:
            ValueError: the model's attention is another one, which did not ask the state for what it holds.
        """
        if self._waiting:
            raise ValueError(
                f"the cache is one of {self.name}, and the model's attention is not: "
                f"call model.set_attn_implementation({self.name!r})"
            )
        self._waiting = True
        self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[-2]
        marked = key_states.view_as(key_states)
        setattr(marked, OWNER, self)
        return marked, value_states

    def attend(self, q: Tensor, k: Tensor, v: Tensor, roles: Tensor | None) -> Tensor:
        """Take in the new tokens, and what they attend to: (batch, queries, heads, value_dim), 0 at padding.

        Args:
            q: queries.
            k: keys of the same tokens.
            v: values of the same tokens.
            roles: from `key_roles`, for all tokens that the cache has seen; None = no padding.
        """
        self._waiting = False
        real = None if roles is None else real_queries(roles, q.shape[2])
        if real is None or bool(real.all()):
            mixed, self.state = self._advance(q, k, v, self.state, None)
            return mixed.transpose(1, 2)
        order, mask = pack_rows(real)
        q, k, v = (take_tokens(x, order, dim=2) for x in (q, k, v))
        mixed, self.state = self._advance(q, k, v, self.state, mask)
        back = take_tokens(mixed, torch.argsort(order, dim=1), dim=2)
        return torch.where(real[:, None, :, None], back, 0).transpose(1, 2)

    # -- what transformers asks of a layer

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask speaks of: all tokens, whatever the state keeps of them."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen, padding included."""
        return self.seen

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.seen, self.is_initialized, self._waiting = None, 0, False, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows as beam search chose them."""
        if self.state is not None:
            self.state = self.state.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, one after the other."""
        if self.state is not None:
            rows = torch.arange(len(self.state.position), device=self.state.position.device)
            self.state = self.state.reorder(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Some of the rows."""
        self.reorder_cache(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what a state has dropped does not come back.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a cache that keeps a mechanism's state cannot forget its latest tokens: decode without drafts"
        )


def owner_of(keys: Tensor) -> StateLayer | None:
    """The layer that these keys came from; None for those of any other cache."""
    layer = getattr(keys, OWNER, None)
    return layer if isinstance(layer, StateLayer) else None


def cache_of(model: nn.Module, name: str, make: Callable[[Any, int], Advance]) -> Cache:
    """A cache with a state for every layer of a model.

    Args:
        model: a decoder of transformers.
        name: the attention function, as registered.
        make: the mechanism's step, from the config of the model's text part and the layer's number.

    Raises:
        ValueError: a model with layers that have no keys and values of all tokens.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise ValueError(f"a cache needs a model of transformers, got {type(model).__name__}")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} has an encoder beside its decoder: caches here are a decoder's alone")
    text = config.get_text_config(decoder=True)
    others = sorted(set(getattr(text, "layer_types", None) or []) - {"full_attention"})
    if others:
        raise ValueError(
            f"{type(model).__name__} has layers of other kinds, {', '.join(others)}: only full attention keeps it all"
        )
    return Cache(layers=[StateLayer(name, make(text, number)) for number in range(text.num_hidden_layers)])
