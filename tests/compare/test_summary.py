"""What a race shows: the table on the terminal, the CSV, and progress."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from rich.console import Console
from sample_results import hostile_results, image_results, pretrained_results, results, series_results

from regard.compare.job import Part
from regard.compare.pretrained.summary import legend as pretrained_legend
from regard.compare.pretrained.summary import table as pretrained_table
from regard.compare.progress import Progress
from regard.compare.results import as_csv, assemble, row_of
from regard.compare.summary import advice, legend, remarks, table
from regard.wording import bytes_in_words, listed, shown


def drawn(race, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(race, width=width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("race", [results(), image_results(), series_results()])
def test_the_table_shows_every_finished_row_whole(race, width):
    text = drawn(race, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    ok = [row for row in race["rows"] if row["status"] == "ok"]
    assert len(lines) == 2 + len(ok)
    for row in ok:
        assert any(re.search(rf"\b{row['name']}\b", line) for line in lines[2:])


def test_a_series_race_is_shown_by_mse():
    text = drawn(series_results(), 120)
    assert re.search(r"^ *mse", text.splitlines()[1].partition("mechanism")[2])
    assert "0.341 " in text
    assert "0.0041" in text, "the spread"
    assert "length" not in text
    assert "decode" in text


@pytest.mark.parametrize("width", [80, 140])
def test_a_race_inside_a_model_has_its_own_table(width):
    race = pretrained_results()
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(pretrained_table(race, width=width))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for column in ("perplexity", "against", "hidden", "prompt", "token", "cache"):
        assert column in text
    assert ("mass" in text) == (width > 100)
    assert re.search(r"hip 256 +4\.320 +\+5\.4% +50%", text)
    assert "softmax" not in pretrained_legend(race)


def test_a_wide_terminal_has_more_columns():
    wide, narrow = drawn(results(), 120), drawn(results(), 80)
    for column in ("mechanism", "byte", "at 16,384", "decode"):
        assert column in narrow
    for column in ("params", "step x"):
        assert column in wide
        assert column not in narrow


def test_hostile_text_is_made_harmless():
    race = hostile_results()
    text = drawn(race, 140) + "".join(remarks(race)) + "".join(advice(race)) + legend(race)
    assert "\x1b" not in text
    assert "\x00" not in text
    assert "\u202e" not in drawn(race, 140)


def test_failures_and_notes_are_shown_with_their_reason():
    race = results()
    race["data"]["notes"] = ["3 files skipped"]
    race["rows"][0]["notes"] = ["cost at 8,192 tokens not measured: out of memory"]
    lines = remarks(race)
    assert lines[0].startswith("failed: lssa: out of memory at 16,384 tokens")
    assert lines[1:] == ["note: 3 files skipped", "note: softmax: cost at 8,192 tokens not measured: out of memory"]


def test_the_csv_has_a_line_per_mechanism_and_no_formulas():
    race = results()
    race["rows"][-1]["why"] = '=HYPERLINK("https://evil.example")'
    lines = list(csv.DictReader(io.StringIO(as_csv(race))))
    assert [line["name"] for line in lines] == [row["name"] for row in race["rows"]]
    first = race["rows"][0]
    assert float(lines[0]["quality"]) == first["quality"]["mean"]
    assert float(lines[0]["at_8x"]) == first["extrapolation"][-1]["mean"]
    assert float(lines[0]["forward_ratio"]) == first["cost"]["ratio"][-1]
    assert lines[-1]["why"].startswith("'=")
    assert lines[-1]["quality"] == ""


def test_the_csv_of_a_series_race_speaks_of_mse():
    race = series_results()
    first = next(csv.DictReader(io.StringIO(as_csv(race))))
    assert (first["metric"], first["at_2x"]) == ("mse", "")
    assert float(first["quality"]) == race["rows"][0]["quality"]["mean"]
    assert float(first["macs"]) == race["rows"][0]["macs_per_token"]


def test_a_row_without_results_is_unfinished(settings, tmp_path):
    row = row_of("softmax", Part(tmp_path), settings())
    assert (row["status"], row["why"]) == ("unfinished", "not finished yet")


def test_means_and_spreads_are_over_the_seeds(settings, tmp_path):
    curve = {"seed": 0, "steps": [1], "train": [8.0], "validation_steps": [1], "validation": [8.0]}
    runs = {
        seed: {
            "quality": value,
            "extrapolation": [{"factor": 1, "length": 16, "value": value}, {"factor": 2, "length": 32, "value": 9.0}],
            "curve": {**curve, "seed": seed},
        }
        for seed, value in enumerate([2.0, 2.2, 2.7])
    }
    row = row_of("softmax", Part(tmp_path, runs=runs), settings(seeds=3))
    assert row["quality"]["mean"] == pytest.approx(2.3)
    assert row["quality"]["spread"] == pytest.approx(0.13**0.5)
    assert row["quality"]["per_seed"] == [2.0, 2.2, 2.7]
    assert row["extrapolation"][1] == {"factor": 2, "length": 32, "mean": 9.0, "spread": 0.0}
    assert len(row["curves"]) == 3


def test_parts_are_assembled_into_results_that_are_json(settings, tmp_path):
    race = settings(mechanisms=("softmax", "linear"))
    parts = {name: Part(tmp_path, failed="it broke\nbadly" if name == "linear" else None) for name in race.mechanisms}
    described = {"source": "s", "description": "d", "notes": ["n"], "baselines": {"uniform": 8.0}, "labels": ["x"]}
    found = assemble(race, parts, described, created="now", finished=False, on_machine={"device": "cpu"})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["status"] for row in found["rows"]] == ["unfinished", "failed"]
    assert found["rows"][1]["why"] == "it broke badly"
    assert found["data"] == {"source": "s", "description": "d", "notes": ["n"]}
    assert found["recommendation"] == []


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_what_happens(terminal):
    console = Console(file=io.StringIO(), width=90, force_terminal=terminal, color_system=None)
    with Progress(console, ["softmax", "linear"], finished=0, steps=10, seeds=2) as progress:
        progress.stage("softmax", "start")
        progress.stage("softmax", "train", 1)
        progress.step("softmax", seed=1, step=7, steps=10, loss=2.5)
        live = Console(width=90, file=io.StringIO())
        live.print(progress)
        progress.end("softmax", "2.100 bits/byte")
    assert "training, seed 2 of 2, step 7 of 10, loss 2.500" in live.file.getvalue()
    assert "0 of 2 done" in live.file.getvalue()
    written = console.file.getvalue()
    assert "softmax: 2.100 bits/byte" in written
    if not terminal:
        assert [line.partition("] ")[2] for line in written.splitlines()] == [
            "softmax: starting",
            "softmax: training, seed 2 of 2",
            "softmax: 2.100 bits/byte",
        ]


def test_words():
    assert [bytes_in_words(value) for value in (0, 1023, 1536, 200 * 2**20)] == ["0 B", "1,023 B", "1.5 KiB", "200 MiB"]
    assert listed(list("abcdefg"), 3) == "a, b, c and 4 more"
    assert shown("a\x1b[0m\nb\ud800c" + "x" * 300, 40) == "a [0m b\ufffdc" + "x" * 11 + "…" + "x" * 20
