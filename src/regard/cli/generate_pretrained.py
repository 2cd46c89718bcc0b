"""`regard generate --model`: text from a model of transformers, under its own attention or one of ours."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from regard.cli.errors import UserError, need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers.cache_utils import Cache

    from regard.integrations.transformers.mechanism import InsertedLandmarks
    from regard.integrations.transformers.pretrained import Pretrained
    from regard.tasks.generation import Sampling


def stream_pretrained(
    source: str, attention: str, options: str | None, text: str, tokens: int, sampling: Sampling, device: str
) -> int:
    """Print a prompt and what follows it, as it comes; times and memory on stderr.

    Args:
        source: a folder in transformers' layout, or a name on the hub.
        attention: the model's own, "sdpa", or a mechanism.
        options: of the mechanism, as the user wrote them.
        text: the prompt.
        tokens: how many to generate.
        sampling: how they are chosen.
        device: where to run.

    Raises:
        UserError: what the user can put right.
    """
    import torch

    need("transformers", extra="hf", command="generate --model")
    from regard.integrations.transformers.pretrained import load_pretrained, with_landmarks

    given = _attention_options(attention, options)
    found = load_pretrained(source, device=device)
    ids = torch.tensor(found.tokenizer.encode(text), dtype=torch.int64, device=device)
    if not len(ids):
        raise UserError("the model's tokenizer makes no token of the prompt")
    landmarks, most = _landmarks_of(found, attention, given), len(ids) + tokens
    if landmarks is not None:
        ids, most = with_landmarks(ids, landmarks), most + most // landmarks.block_size
    cache = _cache_for(found, attention, given, max_len=most)
    begin = time.monotonic()
    scores = _read_with_progress(found, ids, cache)
    read_s = time.monotonic() - begin
    sys.stdout.write(text)
    per_token = _write_continuation(found, scores, cache, tokens, sampling, landmarks)
    _tell(len(ids), read_s, per_token, cache)
    return 0


def _write_continuation(
    found: Pretrained,
    scores: Tensor,
    cache: Cache,
    tokens: int,
    sampling: Sampling,
    landmarks: InsertedLandmarks | None,
) -> float:
    """The text that follows, on stdout; returns seconds per token."""
    from regard.integrations.transformers.pretrained import continue_text

    stop = found.model.generation_config.eos_token_id
    stops = frozenset() if stop is None else frozenset([stop] if isinstance(stop, int) else stop)
    made = continue_text(found.model, scores, cache, count=tokens, sampling=sampling, stop=stops, landmarks=landmarks)
    begin, count = time.monotonic(), 0

    def counted() -> Iterator[int]:
        nonlocal count
        for number in made:
            count += 1
            yield number

    try:
        for piece in found.tokenizer.stream(counted()):
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
    return (time.monotonic() - begin) / max(1, count)


def _tell(tokens: int, read_s: float, per_token: float, cache: Cache) -> None:
    from regard.cli.console import progress
    from regard.integrations.transformers.pretrained import cache_bytes
    from regard.wording import bytes_in_words

    progress().print(
        f"{tokens:,} tokens read in {read_s:.1f} s, {1000 * per_token:.1f} ms per new token; "
        f"cache: {bytes_in_words(cache_bytes(cache))}; peak memory of the process: {bytes_in_words(_peak_memory())}",
        soft_wrap=True,
    )


def _attention_options(attention: str, options: str | None) -> dict[str, Any]:
    if attention != "sdpa":
        from regard.integrations.transformers.options import read_options

        return read_options(attention, options)
    if options is not None:
        raise UserError("--options belongs to an attention of ours, and sdpa has none")
    return {}


def _landmarks_of(found: Pretrained, attention: str, options: dict[str, Any]) -> InsertedLandmarks | None:
    """What stands between the tokens that the model reads."""
    from regard.integrations.transformers.attention import MECHANISMS

    name = attention.removeprefix("regard_")
    landmarks = MECHANISMS[name](**options).landmarks if name in MECHANISMS else None
    if name == "landmark_tokens" and landmarks is None:
        raise UserError("landmark_tokens is for models with a trained landmark: --options landmark_id=ID says which")
    known = found.model.config.get_text_config().vocab_size
    if landmarks is not None and landmarks.landmark_id >= known:
        raise UserError(f"landmark_id={landmarks.landmark_id} is none of the model's {known:,} ids")
    return landmarks


def _cache_for(found: Pretrained, attention: str, options: dict[str, Any], *, max_len: int) -> Cache:
    """An empty cache of the wanted attention, which the model is set to."""
    from transformers.cache_utils import DynamicCache

    from regard.integrations.transformers import new_cache

    if attention == "sdpa":
        found.model.set_attn_implementation("sdpa")
        return DynamicCache(config=found.model.config)
    try:
        return new_cache(found.model, attention.removeprefix("regard_"), max_len=max_len, **options)
    except ValueError as error:
        raise UserError(str(error)) from None


def _read_with_progress(found: Pretrained, ids: Tensor, cache: Cache) -> Tensor:
    from regard.cli.console import progress
    from regard.cli.prompt_progress import prompt_progress
    from regard.integrations.transformers.pretrained import read_prompt

    with prompt_progress(len(ids), progress()) as on_tokens:
        return read_prompt(found.model, ids, cache, on_tokens=on_tokens)


def _peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
