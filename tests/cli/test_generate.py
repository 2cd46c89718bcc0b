"""`regard generate`: the same text with and without a state, and one line for what cannot be continued."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from tiny_translation import read_pairs, tiny_network, write_pairs

from regard.models.language.decoder import Decoder, DecoderConfig
from regard.tasks import checkpoint
from regard.tasks.language import Language, LanguageSettings


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def save(tmp_path: Path, mixer: str, *, tokenizer: str = "bytes", **options) -> None:
    """A network in the folder `run`."""
    (tmp_path / "text.txt").write_text("the dog sleeps and the fox runs, café\n" * 30, encoding="utf-8")
    task = Language(LanguageSettings(length=16, tokenizer=tokenizer))
    task.read(tmp_path / "text.txt", cache=tmp_path)
    fields = task.model_fields()
    config = DecoderConfig(dim=12, num_layers=2, num_heads=2, hidden=8, mixer=mixer, mixer_options=options, **fields)
    model = Decoder(config)
    Path("run").mkdir(exist_ok=True)
    checkpoint.save(Path("run/model.safetensors"), checkpoint.header_of(task, "decoder_lm", config), model.state_dict())


@pytest.fixture
def trained(tmp_path) -> None:
    save(tmp_path, "lightning")


QUICK = ("--tokens", "20", "--device", "cpu")


@pytest.mark.parametrize("mixer", ["softmax", "lightning", "aaren"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_the_text_is_the_same_with_and_without_a_state(regard, tmp_path, mixer, tokenizer):
    save(tmp_path, mixer, tokenizer=tokenizer)
    prompt = ("--prompt", "the café", "--seed", "3", *QUICK)
    told = regard("generate", "run", *prompt)
    assert told.status == 0, told.err
    assert told.out.startswith("the café")
    assert told.out.endswith("\n")
    assert re.fullmatch(r"\d+\.\d ms per token; state for \d+ tokens: [\d.,]+ (B|KiB)\n", told.err), told.err
    without = regard("generate", "run", *prompt, "--no-state")
    assert without.out == told.out
    assert "state" not in without.err
    assert regard("generate", "run/model.safetensors", *prompt).out == told.out


def test_a_seed_and_the_temperature_decide(regard, trained):
    prompt = ("generate", "run", "--prompt", "a", *QUICK)
    made = [regard(*prompt, "--seed", seed).out for seed in ("1", "1", "2")]
    assert made[0] == made[1] != made[2]
    sure = [regard(*prompt, "--temperature", "0", "--seed", seed).out for seed in ("1", "2")]
    assert sure[0] == sure[1]
    assert regard(*prompt, "--top-k", "1", "--seed", "9").out == sure[0]
    assert regard(*prompt, "--top-p", "1e-9", "--seed", "9").out == sure[0]


def test_the_prompt_may_be_a_file(regard, trained):
    Path("start.txt").write_text("the dog", encoding="utf-8")
    told = regard("generate", "run", "--prompt-file", "start.txt", *QUICK)
    assert told.status == 0
    assert told.out == regard("generate", "run", "--prompt", "the dog", *QUICK).out


def test_a_mechanism_without_a_state_reads_everything_anew(regard, trained, monkeypatch):
    monkeypatch.setattr("regard.tasks.generation.decodes", lambda model: False)
    told = regard("generate", "run", "--prompt", "a", *QUICK)
    assert told.status == 0
    first, second = told.err.splitlines()
    assert first == "this mechanism keeps no state: everything is read anew for every token"
    assert re.fullmatch(r"\d+\.\d ms per token", second)


WRONG = {
    "empty prompt": (("run", "--prompt", ""), r"the prompt is empty: give at least one character"),
    "empty file": (("run", "--prompt-file", "empty.txt"), r"the prompt is empty: give at least one character"),
    "no prompt": (("run",), r"give either --prompt or --prompt-file"),
    "two prompts": (("run", "--prompt", "a", "--prompt-file", "empty.txt"), r"give either --prompt or --prompt-file"),
    "no file": (("run", "--prompt-file", "nothing.txt"), r"cannot read nothing\.txt: .*"),
    "a folder as file": (("run", "--prompt-file", "run"), r"cannot read run: .*"),
    "binary file": (("run", "--prompt-file", "latin.txt"), r"cannot read latin\.txt: .*"),
    "prompt not UTF-8": (("run", "--prompt", os.fsdecode(b"caf\xe9")), r"the prompt is not UTF-8 text"),
    "no tokens": (("run", "--prompt", "a", "--tokens", "0"), r"--tokens must be at least 1, got 0"),
    "tokens in words": (("run", "--prompt", "a", "--tokens", "many"), r"--tokens must be a whole number, got many"),
    "temperature": (("run", "--prompt", "a", "--temperature", "-1"), r"temperature must not be negative, got -1\.0"),
    "top-k": (("run", "--prompt", "a", "--top-k", "-1"), r"top_k must not be negative, got -1"),
    "top-p": (("run", "--prompt", "a", "--top-p", "0"), r"top_p must be above 0 and at most 1, got 0\.0"),
    "no checkpoint": (("nothing", "--prompt", "a"), r"there is no checkpoint nothing"),
    "a folder as checkpoint": ((".", "--prompt", "a"), r"there is no checkpoint model\.safetensors"),
    "text as checkpoint": (("latin.txt", "--prompt", "a"), r"latin\.txt is no safetensors file, or a damaged one: .*"),
    "argument": (("run", "--promt", "a"), r"unknown argument --promt; did you mean --prompt\?"),
}


@pytest.mark.parametrize(("arguments", "line"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line(refused, trained, arguments, line):
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes(b"caf\xe9")
    said = refused("generate", *arguments, "--device", "cpu")
    assert re.fullmatch(f"regard generate: {line}", said), said


def test_a_prompt_of_no_tokens_is_one_line(refused, tmp_path):
    import tokenizers

    # byte-pair encoding without an entry for the unknown leaves it out
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"t": 0, "h": 1, "e": 2}, []))
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    save(tmp_path, "lightning", tokenizer=str(tmp_path / "tokenizer.json"))
    said = refused("generate", "run", "--prompt", "...", "--device", "cpu")
    assert said == "regard generate: the network's tokenizer makes no token of the prompt"


def test_more_tokens_than_there_are_positions_is_one_line(regard, tmp_path):
    save(tmp_path, "sea", keys_per_query=4, estimate_width=8, max_positions=16)
    ran = regard("generate", "run", "--prompt", "the dog", *QUICK)
    assert ran.status == 2
    assert ran.err.startswith("regard generate: ")
    assert "16" in ran.err
    assert ran.err.count("\n") <= 2
    assert "Traceback" not in ran.err


def test_another_tasks_network_cannot_continue_text(refused, tmp_path):
    task = read_pairs(write_pairs(tmp_path / "pairs"))
    model = tiny_network(**task.model_fields())
    Path("run").mkdir()
    header = checkpoint.header_of(task, "ed_seq2seq", model.config)
    checkpoint.save(Path("run/model.safetensors"), header, model.state_dict())
    said = refused("generate", "run", "--prompt", "a", "--device", "cpu")
    assert said == "regard generate: run was trained for translation: generate needs a language model"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refused, trained):
    assert "torch sees no GPU here" in refused("generate", "run", "--prompt", "a", "--device", "cuda")


def test_help_has_examples(regard):
    ran = regard("generate", "--help")
    assert ran.status == 0
    assert 'examples:\n  regard generate runs/first --prompt "To be" --tokens 400\n' in ran.out
