"""A language model of transformers from a folder or a hub name, with its tokenizer, and text from it.

Nothing in a checkpoint is run: weights are tensors alone, and code that comes with a model is refused.
"""

from __future__ import annotations

import logging as standard_logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache
from transformers.utils import logging

from regard.errors import UserError
from regard.integrations.transformers.mechanism import InsertedLandmarks
from regard.integrations.transformers.tokens import PretrainedTokenizer
from regard.tasks.generation import Sampling, next_token
from regard.tasks.tokenizers import BYTES, ByteTokenizer, Tokenizer
from regard.wording import listed, shown

CHUNK = 1024
"""Tokens of a prompt that are read at once: a multiple of HiP's blocks of queries. At 32,768 tokens full attention was
measured to take 15 % less time than with 512, and no less with 2,048."""


@dataclass(frozen=True)
class Pretrained:
    """A causal language model in evaluation, and what turns text into its ids."""

    model: Any
    tokenizer: Tokenizer


def load_pretrained(source: str, *, device: str = "cpu") -> Pretrained:
    """Load a model and its tokenizer; one without a tokenizer, but with 256 ids, reads bytes.

    Args:
        source: a folder in transformers' layout, or a name on the hub.
        device: where to put it.

    Raises:
        UserError: there is no such model, it is no causal language model, or it has no tokenizer.
    """
    if not Path(source).is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise UserError(f"there is no folder {shown(source)} with a model of transformers")
    # their bars and tables would stand between the lines of an error
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    standard_logging.getLogger("huggingface_hub").setLevel(standard_logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{shown(source)} is no causal language model of transformers: {shown(str(error))}") from None
    model, told = loaded
    if missing := sorted(told["missing_keys"]):
        raise UserError(f"the weights in {shown(source)} lack {listed(missing, 3)}: they are not a language model's")
    return Pretrained(model.to(device).eval(), _tokenizer_of(source, model.config.get_text_config().vocab_size))


def _tokenizer_of(source: str, vocab_size: int) -> Tokenizer:
    try:
        tokenizer = PretrainedTokenizer(AutoTokenizer.from_pretrained(source, trust_remote_code=False))
        # some families are given an empty tokenizer where the folder has none
        if tokenizer.encode("text"):
            return tokenizer
        why = "it makes no token of any text"
    except (OSError, ValueError, KeyError, ImportError) as error:
        why = shown(str(error))
    if vocab_size == BYTES:
        return ByteTokenizer()
    raise UserError(f"{shown(source)} has no tokenizer that loads: {why}")


def with_landmarks(ids: Int[Tensor, " tokens"], landmarks: InsertedLandmarks) -> Int[Tensor, " places"]:
    """Tokens with a landmark after every block of them, but for one at the very end: it comes before the next token."""
    blocks = ids.split(landmarks.block_size)
    mark = ids.new_full((1,), landmarks.landmark_id)
    return torch.cat([part for block in blocks for part in (mark, block)][1:])


@torch.no_grad()
def read_prompt(
    model: Any,
    ids: Int[Tensor, " tokens"],
    cache: Cache,
    *,
    chunk: int = CHUNK,
    on_tokens: Callable[[int], None] | None = None,
) -> Tensor:
    """Take a prompt into a cache, some tokens at a time, so that memory does not grow with it beyond the cache.

    Args:
        model: a causal language model of transformers.
        ids: the prompt, with its landmarks where the model has any.
        cache: what remembers it.
        chunk: tokens that are read at once.
        on_tokens: told how many tokens each piece had.

    Returns:
        The scores of what follows, `(1, vocab)`.
    """
    for piece in ids[None].split(chunk, dim=1):
        scores = model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        if on_tokens is not None:
            on_tokens(piece.shape[1])
    return scores[:, -1]


@torch.no_grad()
def continue_text(
    model: Any,
    scores: Tensor,
    cache: Cache,
    *,
    count: int,
    sampling: Sampling,
    stop: frozenset[int] = frozenset(),
    landmarks: InsertedLandmarks | None = None,
) -> Iterator[int]:
    """Token ids that follow, one by one, without landmarks.

    Args:
        model: a causal language model of transformers.
        scores: of the first of them, as `read_prompt` returns them.
        cache: what remembers the prompt.
        count: how many tokens at most.
        sampling: how they are chosen.
        stop: ids that end the text.
        landmarks: what the model's prompt has between its tokens, and what follows gets too; None = nothing.
    """
    random = torch.Generator().manual_seed(sampling.seed)
    for number in range(count):
        new = next_token(scores, sampling, random).to(scores.device)
        if int(new) in stop:
            return
        yield int(new)
        if number + 1 == count:
            return
        if landmarks is not None and (cache.get_seq_length() + 1) % (landmarks.block_size + 1) == 0:
            # nothing is predicted from a landmark, and the token behind it was from the one before
            mark = torch.full_like(new, landmarks.landmark_id)
            model(input_ids=mark[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        scores = model(input_ids=new[:, None], past_key_values=cache, use_cache=True).logits[:, -1]


def cache_bytes(cache: Cache) -> int:
    """Bytes that a cache holds."""
    total = 0
    for layer in cache.layers:
        state = getattr(layer, "state", None)
        if state is not None:
            total += state.nbytes
            continue
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            total += 0 if tensor is None else tensor.numel() * tensor.element_size()
    return total
