"""A tiny untrained vision-language model of the Llava type, sinks planted in it, and its attention laid open by hooks.

A sink is planted by adding a large number to some dimensions of a token where it enters the language model, from
where the residual stream carries it on; that its values are small is planted by taking these dimensions from the maps
that make values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.heads import merge_heads, repeat_heads
from regard.ops.softmax_attention import softmax_weights
from regard.ops.visibility import visible_keys

WIDTH, HEADS, KV_HEADS, LAYERS = 256, 8, 4, 5
GRID, PATCH = 4, 7
BEFORE, PATCHES, AFTER = 4, GRID**2, 9
"""Tokens of text before the image, of the image, and of text after it."""
TOKENS = BEFORE + PATCHES + AFTER
IMAGE_ID, VOCABULARY = 99, 100
SIZE = 60.0
"""What is planted; other entries of the residual stream are of size 1 to 5."""


@dataclass(frozen=True)
class LayerCall:
    """One layer's meeting with a prompt.

    Args:
        x: what enters the layer, before its norm.
        q: queries after rotary embedding.
        k: keys after rotary embedding.
        v: values.
        attention: weights after the softmax.
    """

    x: Float[Tensor, "batch tokens dim"]
    q: Float[Tensor, "batch heads tokens head_dim"]
    k: Float[Tensor, "batch kv_heads tokens head_dim"]
    v: Float[Tensor, "batch kv_heads tokens head_dim"]
    attention: Float[Tensor, "batch heads tokens keys"]


Edit = Callable[[int, LayerCall], Tensor | None]
"""From the number of a layer and its call to what comes out of its heads, or None to leave it alone."""


@dataclass(frozen=True)
class Prompt:
    """Text, an image and text.

    Args:
        tokens: ids, the image's all equal.
        pixels: the image.
    """

    tokens: Int[Tensor, "batch tokens"]
    pixels: Float[Tensor, "batch channels y x"]

    @property
    def image(self) -> Bool[Tensor, "batch tokens"]:
        """Which tokens are the image's."""
        return self.tokens == IMAGE_ID


def tiny_vlm(*, seed: int) -> Any:
    """The model, from a configuration alone, with grouped keys and in eval mode."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=GRID * PATCH,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        initializer_range=0.08,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID, image_seq_length=PATCHES)
    config._attn_implementation = "eager"
    return LlavaForConditionalGeneration(config).eval()


def make_prompt(*, seed: int) -> Prompt:
    """A random prompt; its first token is always the same."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, IMAGE_ID, (1, BEFORE + AFTER), generator=generator)
    text[:, 0] = 1
    image = torch.full((1, PATCHES), IMAGE_ID)
    pixels = torch.randn(1, 3, GRID * PATCH, GRID * PATCH, generator=generator)
    return Prompt(torch.cat((text[:, :BEFORE], image, text[:, BEFORE:]), dim=1), pixels)


@contextmanager
def planted(model: Any, *, tokens: Sequence[int], dims: Sequence[int]) -> Iterator[None]:
    """Sinks at some positions of every prompt, with small values, while the context lasts."""
    layers = model.model.language_model.layers
    weights = [layer.self_attn.v_proj.weight for layer in layers]
    before = [weight.detach().clone() for weight in weights]
    place = torch.zeros(TOKENS, WIDTH)
    place[torch.tensor(list(tokens))[:, None], torch.tensor(list(dims))] = SIZE

    def plant(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0] + place, *arguments[1:])

    handle = layers[0].register_forward_pre_hook(plant)
    with torch.no_grad():
        for weight in weights:
            weight[:, list(dims)] = 0
    try:
        yield
    finally:
        handle.remove()
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


@torch.no_grad()
def run_vlm(
    model: Any, prompt: Prompt, edit: Edit | None = None
) -> tuple[Float[Tensor, "batch tokens ids"], list[LayerCall]]:
    """Logits, and every layer's call.

    Args:
        model: from `tiny_vlm`.
        prompt: what it reads.
        edit: replaces what comes out of a layer's heads.
    """
    calls: list[LayerCall] = []
    with ExitStack() as stack:
        for number, layer in enumerate(model.model.language_model.layers):
            stack.enter_context(_opened(number, layer, calls, edit))
        logits = model(input_ids=prompt.tokens, pixel_values=prompt.pixels, use_cache=False).logits
    return logits, calls


@contextmanager
def _opened(number: int, layer: Any, calls: list[LayerCall], edit: Edit | None) -> Iterator[None]:
    inputs: list[Tensor] = []

    def listen(_: Any, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0])

    def replace(module: Any, _: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        call = _call(module, inputs.pop(), options)
        calls.append(call)
        mixed = edit(number, call) if edit is not None else None
        return None if mixed is None else (module.o_proj(merge_heads(mixed)), *output[1:])

    handles = [
        layer.register_forward_pre_hook(listen),
        layer.self_attn.register_forward_hook(replace, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call(module: Any, x: Tensor, options: dict[str, Any]) -> LayerCall:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    normed = options["hidden_states"]
    q, k, v = (
        projection(normed).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, *options["position_embeddings"])
    visible = visible_keys(q.shape[2], k.shape[2], causal=True, device=q.device)
    return LayerCall(x, q, k, v, softmax_weights(q, k, visible=visible))


def weigh_values(call: LayerCall, attention: Float[Tensor, "batch heads tokens keys"]) -> Tensor:
    """What comes out of the heads under other weights."""
    return attention @ repeat_heads(call.v, attention.shape[1])
