from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_language import QUIET, SENTENCE, TINY

from regard.models.language.decoder import Decoder, DecoderConfig
from regard.tasks.fit import fit
from regard.tasks.language import Language, LanguageSettings
from regard.tasks.recipe import Recipe


@pytest.fixture
def text_file(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SENTENCE * 40)
    return path


@pytest.fixture
def language(text_file, tmp_path) -> Language:
    task = Language(LanguageSettings(length=13, evaluation_tokens=130))
    task.read(text_file, cache=tmp_path)
    return task


@pytest.fixture
def run_tiny(language, tmp_path):
    """Trains a tiny network for a few steps in a folder."""

    def run(*, folder: Path | None = None, config: DecoderConfig = TINY, resume: bool = False, **recipe):
        import torch

        folder = folder or tmp_path / "run"
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = Decoder(config)
        planned = replace(Recipe(steps=6, batch=3, evaluate_every=3), **recipe)
        outcome = fit(
            language,
            model,
            model_name="decoder_lm",
            config=config,
            recipe=planned,
            folder=folder,
            hardware=QUIET,
            resume=resume,
        )
        return outcome, model, folder

    return run
