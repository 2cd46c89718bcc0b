"""The queries and keys of every layer of a model of transformers, as its attention gets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from regard.integrations.transformers.attention import PREFIX, attention_function, softmax
from regard.integrations.transformers.masks import key_roles

NAME = PREFIX + "recording"
QueriesKeys = tuple[Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch kv_heads tokens head_dim"]]


@torch.no_grad()
def queries_and_keys(model: Any, ids: Int[Tensor, " tokens"]) -> dict[int, QueriesKeys]:
    """Read tokens with softmax attention, and keep what every layer compares; the model's attention is as before after.

    Queries are scaled so that scores are `q . k / sqrt(head_dim)`, whatever scale the model has.

    Args:
        model: a causal language model of transformers.
        ids: the tokens.

    Raises:
        ValueError: the model does not number its attention layers.
    """
    found: dict[int, QueriesKeys] = {}
    attend = attention_function(NAME, softmax())

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
    ) -> tuple[Tensor, None]:
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise ValueError(
                f"{type(module).__name__} does not say which layer it is: its attention cannot be recorded"
            )
        scaling, width = given.get("scaling"), query.shape[-1]
        found[layer] = (query if scaling is None else query * (scaling * width**0.5), key)
        function: Callable[..., tuple[Tensor, None]] = attend
        return function(module, query, key, value, mask, **given)

    before = model.config._attn_implementation
    AttentionInterface.register(NAME, record)
    AttentionMaskInterface.register(NAME, key_roles)
    model.set_attn_implementation(NAME)
    try:
        model(input_ids=ids[None], use_cache=False, logits_to_keep=1)
    finally:
        model.set_attn_implementation(before)
    return found
