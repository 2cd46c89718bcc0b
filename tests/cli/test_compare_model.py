"""`regard compare text --model`: a race inside a model of transformers, from its files to the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

QUICK = ("--lengths", "160,208", "--budgets", "48", "--passages", "1", "--scored", "9", "--out", "race")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(capsys) -> str:
    """A small model on bytes, saved without a tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=256, num_key_value_heads=2, max_position_embeddings=190, eos_token_id=None, **sizes)
    LlamaForCausalLM(config).save_pretrained("model")
    capsys.readouterr()
    return "model"


def test_a_race_from_the_model_to_the_report_and_on(regard, refused, model):
    ran = regard("compare", "text", "--model", model, *QUICK)
    assert ran.status == 0, ran.err
    results = json.loads(Path("race/results.json").read_text())
    names = ["sdpa", "softmax", "hip 48", "recycled 48", "streaming_llm 48", "h2o 48", "landmark 48"]
    assert sorted(row["name"] for row in results["rows"]) == sorted(names)
    for row in results["rows"]:
        assert row["status"] == "ok", row["why"]
        assert row["name"] in ran.out
        assert len(row["inference"]["perplexity"]) == 2
        assert all(0 < mass <= 1 for mass in row["inference"]["mass"])
        assert row["decode"]["state_bytes"][0] > 0
    by_name = {row["name"]: row for row in results["rows"]}
    assert by_name["softmax"]["inference"]["excess"][-1] == pytest.approx(0, abs=1e-4)
    assert by_name["sdpa"]["cost"]["ratio"] == [1.0, 1.0]
    assert by_name["streaming_llm 48"]["decode"]["state_bytes"][1] < by_name["sdpa"]["decode"]["state_bytes"][1] / 2
    assert "note: the model was built for 190 positions: 208 go beyond them" in ran.out
    page = Path("race/report.html").read_text()
    assert "Hidden numbers found" in page
    assert "Nothing is trained" in page
    lines = list(csv.DictReader(Path("race/results.csv").read_text().splitlines()))
    assert len(lines) == 2 * len(names)
    assert float(lines[0]["perplexity"]) == pytest.approx(results["rows"][0]["inference"]["perplexity"][0])
    assert not Path("race/work").exists()
    _goes_on(regard, refused, results)


def _goes_on(regard, refused, results) -> None:
    """A finished race is shown again; an interrupted one keeps its rows, and other settings are refused."""
    again = regard("compare", "text", "--resume", "--out", "race")
    assert again.status == 0, again.err
    assert "this race is finished" in again.err
    kept = [row for row in results["rows"] if row["name"] != "h2o 48"]
    Path("race/results.json").write_text(json.dumps({**results, "finished": False, "rows": kept}))
    Path("race/work").mkdir()
    Path("race/work/data.json").write_text("{}")
    line = refused("compare", "text", "--resume", "--out", "race", "--budgets", "32")
    assert line.startswith("regard compare: cannot resume race with other settings: budgets 48 there, 32 now")
    on = regard("compare", "text", "--resume", "--out", "race")
    assert on.status == 0, on.err
    assert "hip 48: perplexity" not in on.err
    assert "h2o 48: perplexity" in on.err
    after = json.loads(Path("race/results.json").read_text())
    assert after["finished"]
    (hip,) = [row for row in after["rows"] if row["name"] == "hip 48"]
    assert [hip["decode"]] == [row["decode"] for row in kept if row["name"] == "hip 48"]


def test_a_plan_measures_nothing(regard, model):
    ran = regard("compare", "text", "--model", model, "--budgets", "32,64", "--mechanisms", "hip", "--dry-run")
    assert ran.status == 0, ran.err
    assert "hip 32" in ran.out
    assert "3 contestants" in ran.out
    assert "of 126 tokens" in ran.out, "190 positions less 64 scored tokens"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "./nowhere"), "there is no folder ./nowhere with a model of transformers"),
        (("--model", "model", "--steps", "9"), "--steps belongs to mechanisms that are trained"),
        (("--model", "model", "--budgets", "x"), "--budgets must be positive whole numbers separated by commas"),
        (("--model", "model", "--budgets", "2"), "--budgets 2 does not suit hip: "),
        (("--model", "model", "--mechanisms", "lightning"), "'lightning' is no training-free attention"),
        (("--model", "model", "--scored", "1"), "--scored must be more than 4 tokens, got 1"),
        (("--model", "model", "--data", "missing.txt"), "there is no file or folder "),
        (("--budgets", "64"), "--budgets belongs to a race inside a trained model"),
    ],
)
def test_bad_input_is_one_line(refused, model, arguments, message):
    assert message in refused("compare", "text", *arguments)
    assert not Path("runs").exists()


def test_a_model_belongs_to_text(refused, model):
    assert "--model races on text, got the task image" in refused("compare", "image", "--model", model)


def test_a_short_text_is_refused_and_a_failing_mechanism_is_told(regard, refused, model, monkeypatch):
    Path("short.txt").write_text("to be or not to be")
    line = refused("compare", "text", "--model", model, *QUICK, "--data", "short.txt")
    assert "gives 19 tokens, and the longest prompt with what follows it needs 224" in line
    assert not Path("race").exists()

    from regard.compare.pretrained import follow

    original = follow.new_cache

    def broken(network, name, **options):
        if name == "h2o":
            raise ValueError("no such thing here")
        return original(network, name, **options)

    monkeypatch.setattr(follow, "new_cache", broken)
    ran = regard("compare", "text", "--model", model, *QUICK, "--mechanisms", "h2o", "--lengths", "60")
    assert ran.status == 0, ran.err
    assert "failed: h2o 48: no such thing here" in ran.out
