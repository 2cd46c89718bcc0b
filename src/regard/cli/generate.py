"""`regard generate`: text from a language model's checkpoint, as it comes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regard.cli.errors import UserError

if TYPE_CHECKING:
    from regard.models.language.base import LanguageModel
    from regard.tasks.generation import Sampling
    from regard.tasks.language import Language

EXAMPLES = """
  regard generate runs/first --prompt "To be" --tokens 400
  regard generate runs/first --prompt-file start.txt --temperature 0.7 --top-p 0.9 --seed 3
  regard generate --model models/llama --attention hip --options mask_k=256,window=128 --prompt-file book.txt
  regard generate --model models/llama --attention landmark --options top_k=8,offload=disk --prompt-file book.txt
"""


def run(
    checkpoint: Path | None = None,
    *,
    model: str | None = None,
    attention: str = "sdpa",
    options: str | None = None,
    prompt: str | None = None,
    prompt_file: Path | None = None,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    no_state: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> int:
    """Continue a prompt with a trained language model; text is printed as it is generated.

    The model is a checkpoint of regard train, or with --model one of Hugging Face transformers, whose attention can be
    replaced; its prompt is read in pieces, so that it may be long.

    Linear and recurrent mechanisms keep a state of constant size, softmax a key-value cache; the size is told at the
    end, on stderr, with the time per token.

    Args:
        checkpoint: a file that regard train wrote, or its folder.
        model: a folder in the layout of transformers, or a name on its hub, instead of a checkpoint.
        attention: with --model: sdpa, or softmax, hip, recycled, streaming_llm, h2o, landmark or landmark_tokens.
        options: of the attention, such as top_k=256,stride=16.
        prompt: the text to continue.
        prompt_file: a file with the text to continue.
        tokens: how many tokens to generate.
        temperature: how evenly tokens are drawn; 0 = always the likeliest.
        top_k: draw from so many of the likeliest tokens only; 0 = all.
        top_p: draw from the likeliest tokens that together have this probability; 1 = all.
        seed: of the random choices.
        no_state: read the whole text anew for every token; the tokens are the same.
        device: where to run (default auto, a GPU if there is one).
    """
    if tokens < 1:
        raise UserError(f"--tokens must be at least 1, got {tokens}")
    if (prompt is None) == (prompt_file is None):
        raise UserError("give either --prompt or --prompt-file")
    if (checkpoint is None) == (model is None):
        raise UserError("give either a checkpoint of regard train or --model")
    if model is None and (attention != "sdpa" or options is not None):
        raise UserError(
            "--attention and --options belong to --model: a checkpoint has the attention it was trained with"
        )
    if model is not None and no_state:
        raise UserError("--no-state belongs to a checkpoint: a model of transformers always keeps its cache")
    text = _prompt(prompt, prompt_file)
    from regard.cli.console import progress
    from regard.cli.evaluate import chosen_device
    from regard.models.language.base import LanguageModel
    from regard.tasks import checkpoint as checkpoints
    from regard.tasks.generation import Sampling, decodes
    from regard.tasks.language import Language

    try:
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    except ValueError as error:
        raise UserError(str(error)) from None
    if model is not None:
        from regard.cli.generate_pretrained import stream_pretrained

        return stream_pretrained(model, attention, options, text, tokens, sampling, chosen_device(device))
    assert checkpoint is not None
    loaded = checkpoints.load(checkpoint)
    if not isinstance(loaded.task, Language):
        raise UserError(f"{checkpoint} was trained for {loaded.task.name}: generate needs a language model")
    network = loaded.model.to(chosen_device(device))
    assert isinstance(network, LanguageModel)
    with_state = decodes(network) and not no_state
    if not with_state and not no_state:
        progress().print("this mechanism keeps no state: everything is read anew for every token")
    return _stream(loaded.task, network, text, tokens, sampling, with_state)


def _prompt(prompt: str | None, prompt_file: Path | None) -> str:
    if prompt_file is not None:
        from regard.wording import shown

        try:
            prompt = prompt_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {shown(prompt_file)}: {shown(str(error))}") from None
    if not prompt:
        raise UserError("the prompt is empty: give at least one character")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("the prompt is not UTF-8 text") from None
    return prompt


def _stream(task: Language, model: LanguageModel, text: str, tokens: int, sampling: Sampling, with_state: bool) -> int:
    import time

    import torch

    from regard.cli.console import progress
    from regard.tasks.generation import generate

    tokenizer = task.tokenizer
    assert tokenizer is not None
    ids = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
    if not len(ids):
        raise UserError("the network's tokenizer makes no token of the prompt")
    begin = time.monotonic()
    sys.stdout.write(text)
    made = generate(model, ids, count=tokens, sampling=sampling, with_state=with_state)
    try:
        for piece in tokenizer.stream(made):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except ValueError as error:
        # more tokens than a network has positions for
        raise UserError(str(error)) from None
    finally:
        sys.stdout.write("\n")
    per_token = (time.monotonic() - begin) / tokens
    told = f"{1000 * per_token:.1f} ms per token"
    if with_state:
        from regard.wording import bytes_in_words

        room = len(ids) + tokens
        size = sum(layer.nbytes for layer in model.init_state(1, max_len=room))
        told += f"; state for {room:,} tokens: {bytes_in_words(size)}"
    progress().print(told)
    return 0
