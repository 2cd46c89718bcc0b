"""`regard compare series`: a user's CSV file from the command line to the report, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from pathlib import Path

import pytest

TINY = ("--lengths", "8,16", "--steps", "3", "--train-length", "6", "--batch", "2", "--dim", "12", "--heads", "3")
TINY = (*TINY, "--layers", "1", "--jobs", "2")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_series(path: Path, *, rows: int = 70, header: str = "date,load,<b>oil</b>") -> str:
    lines = [f"2026-02-{1 + day % 28:02d},{math.sin(day):.4f},{day / 7:.4f}" for day in range(rows)]
    path.write_text("\n".join([header, *lines]), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_a_csv_file_from_the_command_line_to_the_report_and_on_from_the_copy(regard, refused, outsiders, tmp_path):
    write_series(tmp_path / "mine.csv")
    ran = regard("compare", "series", "--data", "mine.csv", "--mechanisms", "softmax,toy_raise", "--seeds", "2",
                 "--out", "out", "--import", outsiders, *TINY)  # fmt: skip
    assert ran.status == 0, ran.err
    assert "mine.csv: 70 rows of 2 channels; 49 train, 7 validate, 14 test (70, 10 and 20 %)" in ran.err
    race = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert race["task"] == "series"
    assert race["finished"] is True
    assert list(race["baselines"]) == ["repeating the last value", "training mean"]
    assert race["data"]["channels"] == ["load", "<b>oil</b>"]
    assert race["data"]["horizon"] == 6
    rows = {row["name"]: row for row in race["rows"]}
    assert rows["toy_raise"]["status"] == "failed"
    assert rows["toy_raise"]["why"].startswith("RuntimeError: the mechanism broke")
    row = rows["softmax"]
    assert row["status"] == "ok"
    quality = row["quality"]
    assert (quality["metric"], quality["better"], len(quality["per_seed"])) == ("mse", "lower", 2)
    assert quality["spread"] > 0
    assert quality["mean"] == pytest.approx(sum(quality["per_seed"]) / 2)
    assert row["extrapolation"] == []
    assert row["decode"]["positions"] == [8, 16]
    assert row["training"]["tokens_per_s"] == pytest.approx(2 * 6 / row["training"]["step_s"])
    assert row["macs_per_token"] > 0
    assert row["map"]["labels"][-2:] == ["t\u22121", "t"]
    assert [len(head) for head in row["map"]["heads"]] == [6, 6, 6]
    assert row["curves"][1]["steps"][-1] == 3
    assert row["curves"][1]["validation"][-1] == pytest.approx(quality["per_seed"][1], rel=1e-4)
    assert f"{race['rows'][0]['quality']['mean']:#.3g} mse" in ran.err
    assert "mse" in ran.out.splitlines()[1]
    assert "Best decoding" in ran.out
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8") as stream:
        assert [line["metric"] for line in csv.DictReader(stream)] == ["mse", ""]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "time\u2011series forecasting" in page
    assert "<b>oil" not in page
    assert (tmp_path / "out" / "overview.png").is_file()

    other = refused("compare", "series", "--resume", "--out", "out", "--train-length", "5")
    assert other == "regard compare: cannot resume out with other settings: train_length 6 there, 5 now"

    (tmp_path / "mine.csv").unlink()
    again = regard("compare", "series", "--resume", "--out", "out")
    assert again.status == 0, again.err
    assert "toy_raise: training" in again.err, "it is tried again, with the copy"
    assert "softmax" not in again.err, "what is finished is kept"
    kept = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert next(row for row in kept["rows"] if row["name"] == "softmax")["quality"] == quality


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, r"there is no file .*/bad.csv"),
        ("", r".*/bad.csv is empty: a CSV file with a header is needed"),
        ("1,2\n3,4\n", r".*/bad.csv has no header: its first line must name the columns"),
        ("a,b\n1,2\n3\n", r".*/bad.csv line 3: 1 cells, the header names 2"),
        ("a,b\n1,x\n", r".*/bad.csv line 2, column b: 'x' is not a number"),
        ("a,b\n1,nan\n", r".*/bad.csv line 2, column b: the value is missing \(NaN\)"),
        ("date\n2026-01-01\n", r".*/bad.csv has no column with numbers beside date"),
        (
            "a\n" + "1\n2\n" * 50,
            r".*/bad.csv has 100 rows, of which 70 train, and a window of 96 rows and 96 to forecast needs 192 there: "
            r"give more rows or a smaller --train-length",
        ),
        ("a\n" + "1e200\n-1e200\n" * 2000, r"column a has numbers that are too large or too small .*"),
    ],
)
def test_bad_files_are_one_line_and_leave_nothing(refused, tmp_path, content, line):
    if content is not None:
        (tmp_path / "bad.csv").write_text(content)
    before = os.listdir()
    said = refused("compare", "series", "--data", "bad.csv", "--mechanisms", "softmax")
    assert re.fullmatch(f"regard compare: {line}", said), said
    assert refused("compare", "series", "--dry-run", "--data", "bad.csv", "--mechanisms", "softmax") == said
    assert os.listdir() == before


def test_a_folder_and_a_binary_file_are_refused(refused, tmp_path):
    assert "is a folder, not a CSV file" in refused("compare", "series", "--data", str(tmp_path))
    (tmp_path / "x.csv").write_bytes(b"a,b\n\xff\xfe")
    assert "is not UTF-8 text" in refused("compare", "series", "--data", "x.csv")


def test_who_cannot_forecast_is_refused_with_its_reason(refused):
    said = refused("compare", "series", "--mechanisms", "softmax,eca")
    assert said == "regard compare: eca cannot race in series: it acts on feature maps"
    assert "ninformer cannot race in series: a forecast is read after" in refused(
        "compare", "series", "--mechanisms", "ninformer"
    )


def test_the_plan_of_a_series_race(regard, tmp_path):
    write_series(tmp_path / "mine.csv")
    ran = regard("compare", "series", "--dry-run", "--data", "mine.csv", "--mechanisms", "softmax,linear", *TINY)
    assert ran.status == 0
    assert re.search(r"softmax +[\d,]+ +[\d,]+ +\+0\.00%", ran.out)
    assert re.search(r"about \d+ minutes?", " ".join(ran.out.split()))
    assert os.listdir() == ["mine.csv"]
