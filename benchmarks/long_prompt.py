"""A long prompt through `regard generate --model`, in a process that may not take more memory than a limit.

`python benchmarks/long_prompt.py [--tokens 131072] [--attention hip,landmark,recycled] [--limit-gib 20]` makes a small
Llama with random weights that reads bytes, writes a prompt, and runs the real command on it for each attention, one
after the other. The limit is on the process's address space, so that everything counts: code, heap, and mapped files.
What the command tells is printed as a table. Options go behind a name: `--attention hip:dense_layers=0:mask_k=256`.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

KNOWN = ("sdpa", "softmax", "hip", "recycled", "streaming_llm", "h2o", "landmark")
OPTIONS = {"landmark": "offload=disk"}
"""Where none are given: retrieved blocks lie in a file."""
NEW_TOKENS = 16
WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not")
TOLD = re.compile(
    r"(?P<tokens>[\d,]+) tokens read in (?P<read>[\d.]+) s, (?P<each>[\d.]+) ms per new token; "
    r"cache: (?P<cache>[^;]+); peak memory of the process: (?P<peak>.+)"
)


@dataclass(frozen=True)
class Told:
    """What one run of the command told, in its words, and how long all of it took.

    Args:
        attention: which.
        read_s: seconds of the prompt.
        token_ms: milliseconds per new token.
        cache: what the cache held.
        peak: memory of the process.
        wall_s: seconds of the process.
    """

    attention: str
    read_s: str
    token_ms: str
    cache: str
    peak: str
    wall_s: float


def save_model(folder: Path, tokens: int) -> None:
    """A Llama of 4 layers on bytes, in transformers' layout, without a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=tokens + NEW_TOKENS,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_prompt(file: Path, tokens: int) -> None:
    """Words of one byte per letter, which come in no order."""
    chosen = random.Random(0)
    text = ""
    while len(text) < tokens:
        text += " ".join(chosen.choices(WORDS, k=1000)) + "\n"
    file.write_text(text[:tokens], encoding="ascii")


def run_command(attention: str, model: Path, prompt: Path, limit: int) -> Told:
    """Run `regard generate` under the limit; its progress goes to stderr as it comes.

    Raises:
        RuntimeError: the command failed.
    """
    command = [sys.executable, "-m", "regard", "generate", "--model", str(model), "--prompt-file", str(prompt)]
    name, *given = attention.split(":")
    options = ",".join(given) or OPTIONS.get(name)
    command += ["--attention", name, "--tokens", str(NEW_TOKENS), "--temperature", "0", "--device", "cpu"]
    command += [] if options is None else ["--options", options]
    print(f"$ {' '.join(['regard', *command[3:]])}", file=sys.stderr)
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        lines.append(line)
    status = process.wait()
    found = TOLD.search("".join(lines))
    if status or found is None:
        raise RuntimeError(f"{attention}: the command ended with status {status}")
    return Told(
        attention, found["read"], found["each"], found["cache"], found["peak"].strip(), time.monotonic() - begin
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=131072, help="length of the prompt")
    parser.add_argument("--attention", default="hip,landmark,recycled", help="which, separated by commas")
    parser.add_argument("--limit-gib", type=float, default=20.0, help="address space of each process")
    arguments = parser.parse_args()
    chosen = arguments.attention.split(",")
    unknown = [name for name in chosen if name.split(":")[0] not in KNOWN]
    if unknown:
        parser.error(f"unknown attention {unknown[0]!r}: choose from {', '.join(KNOWN)}")
    if arguments.tokens < 1:
        parser.error(f"--tokens must be at least 1, got {arguments.tokens}")
    limit = int(arguments.limit_gib * 2**30)
    table = Table("attention", "prompt, s", "ms per token", "cache", "peak memory", "all, s")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="regard-long-prompt-") as folder:
        model, prompt = Path(folder, "model"), Path(folder, "prompt.txt")
        save_model(model, arguments.tokens)
        write_prompt(prompt, arguments.tokens)
        for attention in chosen:
            try:
                told = run_command(attention, model, prompt, limit)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                table.add_row(attention, "failed", "", "", "", "")
                failed += 1
                continue
            table.add_row(attention, told.read_s, told.token_ms, told.cache, told.peak, f"{told.wall_s:.0f}")
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    print(f"{arguments.tokens:,} tokens, limit {arguments.limit_gib:g} GiB of address space, {threads} threads")
    Console().print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
