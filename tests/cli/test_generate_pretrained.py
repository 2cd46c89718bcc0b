"""`regard generate --model`: a model of transformers under its own attention and under ours, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

PROMPT = "to be or not to be, that is the question; " * 4
QUICK = ("--prompt", PROMPT, "--tokens", "12", "--temperature", "0", "--device", "cpu")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(capsys) -> str:
    """A small model on bytes, saved without a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained("model")
    capsys.readouterr()
    return "model"


@pytest.mark.parametrize(
    ("attention", "options"),
    [
        ("softmax", None),
        ("hip", "mask_k=256,window=128,dense_layers=0"),
        ("regard_hip", "mask_k=256,window=128"),
        ("recycled", "top_k=500,stride=none"),
        ("streaming_llm", "cache_size=500"),
        ("h2o", "cache_size=500"),
        ("landmark", None),
        ("regard_landmark", "block_size=16,top_k=8,offload=disk"),
    ],
)
def test_an_attention_that_sees_everything_gives_the_models_own_text(regard, model, attention, options):
    own = regard("generate", "--model", model, *QUICK)
    assert own.status == 0, own.err
    assert own.out.startswith(PROMPT)
    assert "168 tokens read in " in own.err
    assert "ms per new token; cache: " in own.err
    given = () if options is None else ("--options", options)
    ours = regard("generate", "--model", model, "--attention", attention, *given, *QUICK)
    assert ours.status == 0, ours.err
    assert ours.out == own.out


def test_a_long_prompt_is_read_in_pieces(regard, model, monkeypatch):
    from regard.integrations.transformers import pretrained

    whole = regard("generate", "--model", model, "--attention", "hip", "--options", "mask_k=16,window=16", *QUICK)
    assert whole.status == 0, whole.err
    monkeypatch.setattr(pretrained.read_prompt, "__kwdefaults__", {"chunk": 64, "on_tokens": None})
    pieces = regard("generate", "--model", model, "--attention", "hip", "--options", "mask_k=16,window=16", *QUICK)
    assert pieces.out == whole.out


@pytest.mark.parametrize(
    ("attention", "options"),
    [
        ("hip", "mask_k=64,window=64"),
        ("landmark", "block_size=32,offload=disk"),
        ("recycled", "top_k=64"),
        ("landmark_tokens", "landmark_id=7,block_size=32"),
    ],
)
def test_a_log_shows_how_far_a_long_prompt_is(regard, model, monkeypatch, attention, options):
    from regard.cli import prompt_progress

    monkeypatch.setattr(prompt_progress, "EVERY_S", 0.0)
    Path("long.txt").write_text("to be or not to be, " * 145, encoding="ascii")
    told = regard(
        *("generate", "--model", model, "--attention", attention, "--options", options, "--prompt-file", "long.txt"),
        *("--tokens", "40", "--temperature", "0", "--device", "cpu"),
    )
    assert told.status == 0, told.err
    count = 2900 + (2899 // 32 if attention == "landmark_tokens" else 0)
    lines = told.err.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(rf"reading the prompt: 1,024 of {count:,} tokens, about \d+ s left", lines[0])
    assert re.fullmatch(rf"reading the prompt: 2,048 of {count:,} tokens, about \d+ s left", lines[1])
    assert lines[2].startswith(f"{count:,} tokens read in ")
    assert re.search(r"; peak memory of the process: [\d.,]+ [MG]iB$", lines[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "./nowhere"), "there is no folder ./nowhere with a model of transformers"),
        (
            ("--model", "model", "--attention", "hop"),
            "no attention 'hop' for models of transformers: did you mean hip?",
        ),
        (("--model", "model", "--attention", "hip", "--options", "k=3"), "hip has no option 'k', only mask_k, "),
        (
            ("--model", "model", "--attention", "hip", "--options", "mask_k=7"),
            "must be a positive multiple of block_k=2",
        ),
        (("--model", "model", "--attention", "hip", "--options", "mask_k"), "--options takes NAME=VALUE,NAME=VALUE"),
        (
            ("--model", "model", "--attention", "landmark", "--options", "top_k=-1"),
            "landmark: top_k must be at least 0 blocks, got -1",
        ),
        (
            ("--model", "model", "--attention", "landmark_tokens"),
            "landmark_tokens is for models with a trained landmark: --options landmark_id=ID says which",
        ),
        (
            ("--model", "model", "--attention", "landmark_tokens", "--options", "landmark_id=256"),
            "landmark_id=256 is none of the model's 256 ids",
        ),
        (("--model", "model", "--options", "a=3"), "--options belongs to an attention of ours, and sdpa has none"),
        (("--model", "model", "--no-state"), "--no-state belongs to a checkpoint"),
        (("run", "--model", "model"), "give either a checkpoint of regard train or --model"),
        ((), "give either a checkpoint of regard train or --model"),
        (("run", "--attention", "hip"), "--attention and --options belong to --model"),
    ],
)
def test_what_makes_no_sense_is_one_line(regard, model, arguments, message):
    told = regard("generate", *arguments, *QUICK)
    assert told.status == 2
    assert told.out == ""
    assert message in told.err
    assert told.err.count("\n") == 1


def test_other_folders_are_refused(regard, capsys):
    Path("empty").mkdir()
    told = regard("generate", "--model", "empty", *QUICK)
    assert (told.status, told.err.count("\n")) == (2, 1)
    BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained("bert")
    capsys.readouterr()
    told = regard("generate", "--model", "bert", *QUICK)
    assert (told.status, told.err.count("\n")) == (2, 1), told.err
    assert "the weights in bert lack cls.predictions" in told.err
    Path("code").mkdir()
    content = {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    Path("code/config.json").write_text(json.dumps(content))
    Path("code/evil.py").write_text("open('ran', 'w').close()\nclass Config: ...\nclass Model: ...\n")
    told = regard("generate", "--model", "code", *QUICK)
    assert (told.status, told.err.count("\n")) == (2, 1)
    assert not Path("ran").exists()
