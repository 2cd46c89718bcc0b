"""A language model of `regard train` with softmax attention, saved in the layout of transformers.

`decoder_lm` is a GPT-NeoX without parallel residual: layer norms before rotary attention and before a perceptron with
exact GELU. What GPT-NeoX has no place for is refused.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from regard.errors import UserError
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.language.decoder import Decoder
from regard.tasks.tokenizers import HuggingFaceTokenizer, Tokenizer

CHECKED_TOKENS = 37
TOLERANCE = 1e-4
"""Largest difference of scores over the largest score."""


def save_decoder(model: Decoder, tokenizer: Tokenizer, folder: Path, *, length: int) -> float:
    """Write config, weights and tokenizer; bytes need no tokenizer.

    Args:
        model: the network.
        tokenizer: of its text.
        folder: where to; nothing may be there yet.
        length: tokens that it was trained on: the config's positions, beyond which it may still go.

    Returns:
        The largest difference between the saved model's scores and its own.

    Raises:
        UserError: a network that is no GPT-NeoX, or scores that differ.
        OSError: it cannot be written.
    """
    saved = GPTNeoXForCausalLM(_config(model, length)).eval()
    saved.load_state_dict(_weights(model))
    error = _difference(model, saved)
    # its bar would stand among the lines of a command
    logging.disable_progress_bar()
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".saving-"))
    try:
        saved.save_pretrained(made)
        if isinstance(tokenizer, HuggingFaceTokenizer):
            path = made / "tokenizer.json"
            path.write_text(tokenizer.stored, encoding="utf-8")
            PreTrainedTokenizerFast(tokenizer_file=str(path)).save_pretrained(made)
        made.chmod(0o755)
        made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return error


def _config(model: Decoder, length: int) -> GPTNeoXConfig:
    config, mixers = model.config, model.mixers()
    why = ""
    if not all(isinstance(mixer, SoftmaxAttention) for mixer in mixers):
        why = f"its mixer is {config.mixer}, not softmax"
    elif config.positions != "none":
        why = "it adds positions to its embedding"
    elif any(_part(mixer, "rope_base") is None for mixer in mixers):
        why = "its attention has no rotary positions"
    elif any(_part(mixer, "num_kv_heads") != config.num_heads for mixer in mixers):
        why = "its query heads share keys"
    if why:
        raise UserError(f"this network has no layout in transformers: {why}")
    return GPTNeoXConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.hidden or 4 * config.dim,
        hidden_act="gelu",
        use_parallel_residual=False,
        attention_bias=True,
        layer_norm_eps=1e-5,
        tie_word_embeddings=config.tied,
        max_position_embeddings=length,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _part(mixers[0], "rope_base"),
            "partial_rotary_factor": 1.0,
        },
        bos_token_id=None,
        eos_token_id=None,
    )


def _part(mixer: Any, name: str) -> Any:
    return getattr(mixer, name)


def _weights(model: Decoder) -> dict[str, Tensor]:
    """The network's weights under GPT-NeoX's names."""
    found: dict[str, Any] = {
        "gpt_neox.embed_in.weight": model.embedding.weight,
        "lm_head.weight": model.head.weight,
        "gpt_neox.final_layer_norm.weight": model.norm.weight,
        "gpt_neox.final_layer_norm.bias": model.norm.bias,
    }
    names = {
        "mixer_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "mixer.o_proj": "attention.dense",
        "mlp.0": "mlp.dense_h_to_4h",
        "mlp.2": "mlp.dense_4h_to_h",
    }
    blocks: list[nn.Module] = list(model.blocks)
    for number, block in enumerate(blocks):
        for ours, theirs in names.items():
            module: Any = block.get_submodule(ours)
            for kind in ("weight", "bias"):
                found[f"gpt_neox.layers.{number}.{theirs}.{kind}"] = getattr(module, kind)
        weight, bias = _joined(block.get_submodule("mixer"), model.config.num_heads)
        found[f"gpt_neox.layers.{number}.attention.query_key_value.weight"] = weight
        found[f"gpt_neox.layers.{number}.attention.query_key_value.bias"] = bias
    return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def _joined(mixer: Any, num_heads: int) -> tuple[Tensor, Tensor]:
    """Queries, keys and values of every head side by side, with zeros for biases that there are not."""
    projections = (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    dim = mixer.q_proj.weight.shape[1]
    weights = [each.weight.view(num_heads, -1, dim) for each in projections]
    biases = [
        (each.weight.new_zeros(dim) if each.bias is None else each.bias).view(num_heads, -1) for each in projections
    ]
    return torch.cat(weights, dim=1).reshape(3 * dim, dim), torch.cat(biases, dim=1).reshape(3 * dim)


@torch.no_grad()
def _difference(model: Decoder, saved: Any) -> float:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (2, CHECKED_TOKENS), generator=generator)
    own: Tensor = model.float().cpu().eval()(tokens)
    error, largest = float((saved(input_ids=tokens).logits - own).abs().max()), float(own.abs().max())
    if not error <= TOLERANCE * largest:
        raise UserError(f"the saved model gives other scores: they differ by {error:.2g}, the largest is {largest:.3g}")
    return error
