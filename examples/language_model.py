"""Use: mechanisms inside models of Hugging Face transformers, with their own caches, and mixers in place of attention.

Run: python examples/language_model.py
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from regard.integrations.transformers import new_cache, register, swap


def small_llama(attention: str = "sdpa") -> torch.nn.Module:
    """Random weights; in earnest: `AutoModelForCausalLM.from_pretrained(path, attn_implementation=attention)`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def main() -> None:
    """The same prompt under several implementations."""
    print("registered:", ", ".join(register({"hip": {"mask_k": 32, "window": 16, "dense_layers": 1}})))
    ids = torch.randint(1, 64, (2, 200), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}

    plain = small_llama().generate(**inputs)[:, 200:]
    print("sdpa:         ", plain[0].tolist())
    exact = small_llama("regard_softmax").generate(**inputs)[:, 200:]
    print("regard_softmax", "the same tokens" if torch.equal(exact, plain) else "other tokens")

    model = small_llama("regard_hip")
    print("regard_hip:   ", model.generate(**inputs)[0, 200:].tolist())
    for name, options in (("recycled", {"top_k": 32, "stride": 4}), ("streaming_llm", {"cache_size": 32})):
        made = model.generate(**inputs, past_key_values=new_cache(model, name, **options))
        print(f"{name}:".ljust(14), made[0, 200:].tolist())

    model = small_llama()
    swap(model, "lightning", layers=[2, 3])
    print("lightning in two layers:", model.generate(**inputs)[0, 200:].tolist())


if __name__ == "__main__":
    main()
