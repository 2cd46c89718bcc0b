"""Tiny random models of transformers, built from configs, and prompts for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    ViTConfig,
)

VOCAB, PAD = 61, 0
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
DECODERS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**SIZES),
}
ENCODERS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**{**SIZES, "attention_probs_dropout_prob": 0.0}),
    "vit": ViTConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=12, patch_size=4
    ),
}


def decoder(name: str, attention: str = "sdpa", **changed: Any) -> Any:
    """A causal language model in evaluation, whose weights depend on its kind alone."""
    config = type(DECODERS[name]).from_dict({**DECODERS[name].to_dict(), **changed})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        # the usual start is so small that all attention is alike
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


def encoder(name: str, attention: str = "sdpa") -> Any:
    """A bidirectional model in evaluation."""
    torch.manual_seed(0)
    return AutoModel.from_config(ENCODERS[name], attn_implementation=attention).eval()


def prompt(lengths: list[int], *, side: str, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids of these lengths, padded at a side."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids, mask = torch.full((len(lengths), longest), PAD), torch.zeros(len(lengths), longest, dtype=torch.int64)
    for row, length in enumerate(lengths):
        place = slice(longest - length, longest) if side == "left" else slice(0, length)
        ids[row, place] = torch.randint(2, VOCAB, (length,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def continued(model: Any, inputs: dict[str, Tensor], tokens: int = 12, **options: Any) -> Tensor:
    """Greedy continuation: the new tokens alone."""
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options)
    return made[:, inputs["input_ids"].shape[1] :]
