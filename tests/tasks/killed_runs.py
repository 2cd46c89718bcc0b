"""Trains the same tiny network several times: without interruption, and killed at the steps on the command line.

Run as a program with a folder and numbers. Each run is a fork, so that SIGKILL ends it like any process. A negative
number kills the run in the middle of writing that many-th file instead, between its temporary name and its own.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny_language import QUIET, TINY

from regard.models.language.decoder import Decoder
from regard.tasks import fit as fitting
from regard.tasks.language import Language, LanguageSettings
from regard.tasks.recipe import Recipe

CONFIG = replace(TINY, dropout=0.2)
RECIPE = Recipe(steps=11, batch=3, evaluate_every=3)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, text: Path, at: int | None) -> None:
    task = Language(LanguageSettings(length=13, evaluation_tokens=130))
    task.read(text, cache=folder)
    if at is not None and at >= 0:
        draw, seen = task.batch, iter(range(10**6))
        start = (
            fitting.checkpoint.read(folder / "last.safetensors")[0].step
            if (folder / "last.safetensors").is_file()
            else 0
        )

        def batch(random, rows):
            if start + next(seen) >= at:
                kill()
            return draw(random, rows)

        task.batch = batch
    if at is not None and at < 0:
        rename, written = os.replace, iter(range(1, 10**6))

        def replace_or_die(source, target):
            if next(written) == -at:
                kill()
            rename(source, target)

        os.replace = replace_or_die
    torch.manual_seed(0)
    fitting.fit(
        task,
        Decoder(CONFIG),
        model_name="decoder_lm",
        config=CONFIG,
        recipe=RECIPE,
        folder=folder,
        hardware=QUIET,
        resume=True,
    )


def in_a_process(folder: Path, text: Path, at: int | None) -> int:
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        try:
            train(folder, text, at)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return -status if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    base = Path(sys.argv[1])
    ended = [in_a_process(base / "whole", base / "text.txt", None)]
    ended += [in_a_process(base / "killed", base / "text.txt", int(number)) for number in sys.argv[2:]]
    ended.append(in_a_process(base / "killed", base / "text.txt", None))
    print(*ended)
